"""What a search method is told of its candidates: scores of a race, or slopes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from calibri.arrays import Scores, Vector
from calibri.config import SearchConfig
from calibri.errors import NothingScoredError
from calibri.prompts import Buckets
from calibri.rewards import Scale, scale_of
from calibri.runs.gradients import Gradients, Slope
from calibri.runs.session import Session
from calibri.sampling import Noise
from calibri.scoring import Asked, Evaluator
from calibri.search import first_prompts, race_scores, survivors

_SCALE_PROMPTS = 128


def scale_prompts(session: Session) -> int:
    """Count the training prompts on which the rewards of a mixture are scaled."""
    return 0 if session.mixture.is_plain else min(_SCALE_PROMPTS, len(session.prompts.train))


class Objective:
    """The objective on the images of the generations.

    Args:
        session: its rewards are combined.
        evaluator: scores images and keeps the scores.
        config: at which fidelity, and with how many images of a prompt.
    """

    def __init__(self, session: Session, evaluator: Evaluator, config: SearchConfig) -> None:
        self._session = session
        self._evaluator = evaluator
        self._config = config

    @cached_property
    def scales(self) -> dict[str, Scale]:
        """Mean and spread of each reward of a mixture, from the original model."""
        session = self._session
        if session.mixture.is_plain:
            return {}
        buckets = Buckets(session.prompts.train, session.config.seed)
        prompts = buckets.draw(scale_prompts(session))
        noises = session.noises("scales", 0, prompts, self._config.images_per_prompt)
        tables = self.tables("scales", 0, [session.space.start], noises)
        return {name: scale_of(name, table) for name, table in tables.items()}

    def tables(
        self, phase: str, step: int, vectors: Sequence[Vector], noises: Sequence[Noise]
    ) -> dict[str, Scores]:
        """Scores of vectors by reward, float64 (vectors, noises)."""
        return self._evaluator.score(*self._asked(phase, step, vectors, noises))

    def expect(
        self, phase: str, step: int, vectors: Sequence[Vector], noises: Sequence[Noise]
    ) -> None:
        """Say what ``tables`` will be asked (``Evaluator.expect``)."""
        self._evaluator.expect(self._asked(phase, step, vectors, noises))

    def _asked(
        self, phase: str, step: int, vectors: Sequence[Vector], noises: Sequence[Noise]
    ) -> Asked:
        candidates = [self._session.space.coefficients(vector) for vector in vectors]
        return Asked(
            phase, step, candidates, noises, self._session.objective, self._config.fidelity
        )

    def means(self, tables: Mapping[str, Scores]) -> Scores:
        """Mean objective of each row of the tables, float64 (rows,)."""
        return np.asarray(np.nanmean(self._session.mixture.combine(tables, self.scales), axis=1))

    def derivatives(self, tables: Mapping[str, Scores]) -> dict[str, float]:
        """How the mean objective of the last row changes with its mean of each reward."""
        return self._session.mixture.derivatives(tables, self.scales)

    @property
    def is_constrained(self) -> bool:
        """Whether the objective of a candidate depends on the original's."""
        return bool(self._session.mixture.constraints)


@dataclass(frozen=True)
class Compared:
    """The objective of the original and of candidates, on the same images.

    Attributes:
        scores: of the original, then of candidates, float64 (1 + k,).
        best: highest of a candidate.
    """

    scores: Scores
    best: float


@dataclass(frozen=True)
class Feedback:
    """What one update says of its candidates.

    Attributes:
        told: for ``SearchMethod.tell``, float64 (candidates,), or (images, n) of the one candidate.
        compare: sets them beside the original; it may have to be scored for that.
    """

    told: NDArray[np.float64]
    compare: Callable[[], Compared]


class Judge(Protocol):
    """Says what an update finds of its candidates."""

    def __call__(
        self, number: int, candidates: Sequence[Vector], noises: Sequence[Noise]
    ) -> Feedback:
        """Judge the candidates of an update, by its number, on its bucket."""
        ...

    def expect(self, number: int, candidates: Sequence[Vector], noises: Sequence[Noise]) -> None:
        """Say that it will be asked, so that workers that would idle begin."""
        ...


class Race:
    """Score all candidates on the first prompts of a bucket, the better ones on the rest too.

    Args:
        objective: scores them.
        original: flat vector of the original model, scored beside them.
        config: shares of the race.
    """

    def __init__(self, objective: Objective, original: Vector, config: SearchConfig) -> None:
        self._objective = objective
        self._original = original
        self._config = config

    def __call__(
        self, number: int, candidates: Sequence[Vector], noises: Sequence[Noise]
    ) -> Feedback:
        """Tell scores; candidates are compared on the prompts that none was chosen on.

        Raises:
            NothingScoredError: all images were dropped.
        """
        told, compared = self._scores(number, candidates, noises)
        return Feedback(told, lambda: Compared(compared, float(told.max())))

    def expect(self, number: int, candidates: Sequence[Vector], noises: Sequence[Noise]) -> None:
        """Have the first prompts begun: who is scored on the rest depends on them."""
        vectors = [self._original, *candidates]
        self._objective.expect("search", number, vectors, noises[: self._first(noises)])

    def _first(self, noises: Sequence[Noise]) -> int:
        """Count the images of the prompts that score all candidates."""
        config, count = self._config, self._config.images_per_prompt
        return count * first_prompts(len(noises) // count, config.race_first, config.race_keep)

    def _scores(
        self, number: int, candidates: Sequence[Vector], noises: Sequence[Noise]
    ) -> tuple[Scores, Scores]:
        """Scores to tell; and those of the original and of who stayed, on the other prompts."""
        objective, config = self._objective, self._config
        vectors, first = [self._original, *candidates], self._first(noises)
        try:
            before = objective.tables("search", number, vectors, noises[:first])
        except NothingScoredError:
            if first == len(noises):
                raise
            # Nothing to race on: the rest scores all.
            scores = objective.means(objective.tables("race", number, vectors, noises[first:]))
            return scores[1:], scores
        scores = objective.means(before)
        if first == len(noises):
            return scores[1:], scores
        kept = survivors(scores[1:], config.race_keep)
        rows = [0, *(index + 1 for index in kept)]
        try:
            staying = [vectors[row] for row in rows]
            after = objective.tables("race", number, staying, noises[first:])
        except NothingScoredError:
            return scores[1:], scores
        whole = {name: np.hstack([before[name][rows], after[name]]) for name in after}
        told = race_scores(scores[1:], kept, objective.means(whole)[1:])
        return told, objective.means(after)


class Slopes:
    """Differentiate the objective at a candidate.

    Args:
        objective: is differentiated.
        original: flat vector of the original model.
        gradients: of its rewards.
    """

    def __init__(self, objective: Objective, original: Vector, gradients: Gradients) -> None:
        self._objective = objective
        self._original = original
        self._gradients = gradients

    def __call__(
        self, number: int, candidates: Sequence[Vector], noises: Sequence[Noise]
    ) -> Feedback:
        """Tell the gradients of images at the one candidate.

        The original is scored when they are compared, or where a constraint asks for it.

        Raises:
            RewardError: a score or a gradient is not finite.
            RunError: one image alone does not fit into memory.
        """
        (vector,) = candidates
        slopes = self._gradients("gradient", number, vector, noises)
        paired = cache(partial(self._paired, number, noises, slopes))
        alone = {name: slope.scores[None] for name, slope in slopes.items()}
        tables = paired() if self._objective.is_constrained else alone
        weights = self._objective.derivatives(tables)
        rows = np.sum([weights[name] * slope.gradients for name, slope in slopes.items()], axis=0)
        told = rows[np.isfinite(rows).all(axis=1)]
        return Feedback(told, lambda: self._compare(paired()))

    def expect(self, number: int, candidates: Sequence[Vector], noises: Sequence[Noise]) -> None:
        """Begin nothing: the gradient at one candidate is a few units."""

    def _paired(
        self, number: int, noises: Sequence[Noise], slopes: Mapping[str, Slope]
    ) -> dict[str, Scores]:
        """Scores of the original and the candidate, float64 (2, noises), NaN where one failed."""
        original = self._objective.tables("search", number, [self._original], noises)
        pairs = {name: np.stack([original[name][0], s.scores]) for name, s in slopes.items()}
        missing = np.any([np.isnan(pair).any(axis=0) for pair in pairs.values()], axis=0)
        return {name: np.where(missing, np.nan, pair) for name, pair in pairs.items()}

    def _compare(self, pairs: Mapping[str, Scores]) -> Compared:
        scores = self._objective.means(pairs)
        return Compared(scores, float(scores[1:].max()))
