"""The search loop: ask, score, tell, validate, choose (spec section 3)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from calibri.arrays import Scores, Vector
from calibri.coefficients import SearchSpace
from calibri.config import RunConfig, SearchConfig
from calibri.errors import ConfigError, NothingScoredError
from calibri.progress import Progress
from calibri.prompts import bucket
from calibri.results import Generation, SearchResult
from calibri.rewards import Scale, scale_of
from calibri.runs.checkpoints import Checkpoints
from calibri.runs.session import Session
from calibri.sampling import Noise
from calibri.scoring import Evaluator
from calibri.search import (
    CMASearch,
    bucket_size,
    first_prompts,
    popsize_for,
    race_scores,
    survivors,
    tail_mean,
)

_SCALE_PROMPTS = 128


def make_search(space: SearchSpace, config: RunConfig, start: Vector | None = None) -> CMASearch:
    """Start a search at a vector, or at the original model (spec section 3)."""
    search = config.search
    return CMASearch(
        space.start if start is None else start,
        basis=np.eye(space.size) if search.method == "reference" else search_basis(space),
        bounds=search_bounds(space, search),
        sigma0=search.sigma0,
        popsize=popsize_for(search, space.size),
        seed=config.seed,
    )


def search_bounds(space: SearchSpace, config: SearchConfig) -> NDArray[np.float64]:
    """Lowest and highest value of every entry of a vector, (n, 2)."""
    return space.bounds(config.scale_bounds, config.output_bounds)


def check_start(session: Session) -> None:
    """Refuse bounds that leave out where a search starts or the original model.

    Raises:
        ConfigError: names the entry and the setting.
    """
    space = session.space
    low, high = search_bounds(space, session.config.search).T
    for vector in (space.start, session.start):
        # A little more, since a warm start multiplies and divides by the original's weights.
        outside = np.flatnonzero((vector < low - 1e-9) | (vector > high + 1e-9))
        if len(outside):
            i = outside[0]
            setting = "output_bounds" if space.is_output[i] else "scale_bounds"
            raise ConfigError(
                f"The search starts with {space.labels[i]} = {vector[i]:g}, outside of "
                f"{low[i]:g} to {high[i]:g}. Widen search.{setting}, or start elsewhere."
            )


# Steps along the trajectory cancel in part, and what is found there is far away (docs/search.md).
_TRAJECTORY_STEP = 4.0
# A step of the shift's factor that changes the images about as much as a step of 1 of all gates.
_FACTOR_STEPS = {"guidance": 2.0, "shift": 4.0}
# Candidates that share a shift.
_SHARING = 8


def search_basis(space: SearchSpace) -> NDArray[np.float64]:
    """Columns in which a step of the same length changes the images about as much.

    A gate is its own column. Guidance w amplifies what tells its branches apart, so that gates take
    shorter steps under it (docs/search.md). The two output weights nearly cancel there, so that a
    step of one alone changes the scale of the prediction by a multiple of itself. Their columns are
    what they mean: the scale of the prediction, along (w, 1 - w), and the guidance, along (1, -1);
    in an ensemble one column of the latter kind for each further member. With several output knots
    each of these has a column for its mean over the trajectory and others for how it changes.
    """
    w = max(1.0, space.start_weights[0])
    basis = np.eye(space.size) / w
    if space.search_output:
        outputs = np.flatnonzero(space.is_output)
        modes = np.kron(_output_directions(space), _trajectory_modes(space.output_knots))
        basis[np.ix_(outputs, outputs)] = modes
    for name in space.factors:
        place = space.labels.index(name)
        basis[place, place] = _FACTOR_STEPS[name]
    return basis


def _output_directions(space: SearchSpace) -> NDArray[np.float64]:
    """Columns for the output weights of the members at one point of the trajectory."""
    count, w = len(space.start_weights), max(1.0, space.start_weights[0])
    directions = -math.sqrt(w) * np.eye(count)
    directions[0] = math.sqrt(w)
    directions[:, 0] = np.array(space.start_weights) / w
    return directions


def _trajectory_modes(knots: int) -> NDArray[np.float64]:
    """Columns over the knots: a constant one, then cosines that change ever faster."""
    place = np.arange(knots) / max(1, knots - 1)
    modes = _TRAJECTORY_STEP * np.cos(math.pi * place[:, None] * np.arange(knots))
    modes[:, 0] = 1.0
    return np.asarray(modes)


def share_shifts(space: SearchSpace, candidates: Sequence[Vector]) -> list[Vector]:
    """Let neighbours in the shift of the schedule share their mean, since a batch has one schedule.

    With groups of 8 the shifts of a large population still vary nearly as they were drawn, and
    batches are 8 times as large where a candidate has few images, as at the start of a race. Of a
    small one too few shifts would be left to choose among.

    Returns:
        The candidates in the order of their shifts; as they were where no shift is searched or
        they are fewer than 24.
    """
    if "shift" not in space.factors or len(candidates) < 3 * _SHARING:
        return list(candidates)
    place = space.labels.index("shift")
    table = np.array(sorted(candidates, key=lambda vector: float(vector[place])))
    for group in np.array_split(table, len(table) // _SHARING):
        group[:, place] = group[:, place].mean()
    return list(table)


def scale_prompts(session: Session) -> int:
    """Count the training prompts on which the rewards of a mixture are scaled."""
    return 0 if session.mixture.is_plain else min(_SCALE_PROMPTS, len(session.prompts.train))


@dataclass
class _State:
    means: list[Vector] = field(default_factory=list)
    generations: list[Generation] = field(default_factory=list)


class Optimiser:
    """One search on one session.

    Args:
        session: scores candidates.
        evaluator: keeps their scores.
        progress: is told of every generation and checkpoint.
        config: how to search, when it is not the session's.
    """

    def __init__(
        self,
        session: Session,
        evaluator: Evaluator,
        progress: Progress,
        config: SearchConfig | None = None,
    ) -> None:
        self._session = session
        self._evaluator = evaluator
        self._progress = progress
        self._config = config or session.config.search
        self._state = _State()
        self._checkpoints = Checkpoints(session, evaluator, progress)
        self._scales: dict[str, Scale] = {}

    @cached_property
    def _search(self) -> CMASearch:
        config = self._session.config.model_copy(update={"search": self._config})
        return make_search(self._session.space, config, self._session.start)

    @property
    def _done(self) -> int:
        return len(self._state.generations)

    def run(self) -> tuple[Vector, SearchResult]:
        """Search until the budget or a plateau ends it, and choose the vector to return.

        Returns:
            The chosen flat vector and the record of the search.
        """
        self._scales = self._measure_scales()
        stopped = ""
        while not stopped:
            vector = self._generation()
            if self._done >= self._config.generations:
                stopped = f"the budget of {self._config.generations} generations is used up"
            if stopped or self._done % self._config.validate_every == 0:
                self._checkpoints.add(vector, self._done, self._scales)
                stopped = stopped or self._checkpoints.stop_reason
        return self._result(stopped)

    def _generation(self) -> Vector:
        search, number = self._search, self._search.generation
        candidates = share_shifts(self._session.space, search.ask())
        told, compared = self._race(number, candidates, self._bucket(number))
        search.tell(candidates, list(told))
        self._state.means.append(search.mean)
        self._record(number, compared, float(told.max()), search.sigma)
        if self._config.method == "reference":
            return candidates[int(np.argmax(told))]
        return tail_mean(self._state.means, self._config.tail)

    def _bucket(self, number: int) -> list[Noise]:
        """Draw prompts of the training set, as many as this generation's bucket has."""
        session, config = self._session, self._config
        last = config.final_bucket_size
        size = bucket_size(config.bucket_size, last, self._done, config.generations)
        prompts = bucket(session.prompts.train, size, session.config.seed, number)
        return session.noises("search", number, prompts, config.images_per_prompt)

    def _race(
        self, number: int, candidates: Sequence[Vector], noises: Sequence[Noise]
    ) -> tuple[Scores, Scores]:
        """Score candidates on a bucket, those that lose on its first prompts on these alone.

        Returns:
            The scores to tell; and of the original and the candidates that were scored on the
            prompts after the first, the scores there, on which no candidate was chosen.
        """
        config, vectors = self._config, [self._session.space.start, *candidates]
        count = config.images_per_prompt
        first = count * first_prompts(len(noises) // count, config.race_first, config.race_keep)
        try:
            before = self._tables("search", number, vectors, noises[:first])
        except NothingScoredError:
            if first == len(noises):
                raise
            # Nothing to race on: the rest scores all.
            scores = self._objective(self._tables("race", number, vectors, noises[first:]))
            return scores[1:], scores
        scores = self._objective(before)
        if first == len(noises):
            return scores[1:], scores
        kept = survivors(scores[1:], config.race_keep)
        rows = [0, *(index + 1 for index in kept)]
        try:
            after = self._tables("race", number, [vectors[row] for row in rows], noises[first:])
        except NothingScoredError:
            return scores[1:], scores
        whole = {name: np.hstack([before[name][rows], after[name]]) for name in after}
        told = race_scores(scores[1:], kept, self._objective(whole)[1:])
        return told, self._objective(after)

    def _objective(self, tables: Mapping[str, Scores]) -> Scores:
        """Mean objective of each row."""
        return np.asarray(np.nanmean(self._session.mixture.combine(tables, self._scales), axis=1))

    def _tables(
        self, phase: str, step: int, vectors: Sequence[Vector], noises: Sequence[Noise]
    ) -> dict[str, Scores]:
        candidates = [self._session.space.coefficients(vector) for vector in vectors]
        measures = self._session.objective
        fidelity = self._config.fidelity
        return self._evaluator.score(phase, step, candidates, noises, measures, fidelity)

    def _measure_scales(self) -> dict[str, Scale]:
        """Mean and spread of each reward of a mixture, from the original model."""
        session = self._session
        if session.mixture.is_plain:
            return {}
        count = scale_prompts(session)
        prompts = bucket(session.prompts.train, count, session.config.seed, 0)
        noises = session.noises("scales", 0, prompts, self._config.images_per_prompt)
        tables = self._tables("scales", 0, [session.space.start], noises)
        return {name: scale_of(name, table) for name, table in tables.items()}

    def _record(self, number: int, scores: Scores, best: float, sigma: float) -> None:
        generation = Generation(
            generation=number,
            mean=float(scores[1:].mean()),
            best=best,
            baseline=float(scores[0]),
            sigma=sigma,
            images=self._evaluator.images,
            seconds=self._evaluator.seconds,
        )
        self._state.generations.append(generation)
        self._progress.generation(generation)

    def _result(self, stopped: str) -> tuple[Vector, SearchResult]:
        vector, checkpoints = self._checkpoints.choose()
        return vector, SearchResult(
            coefficients=dict(self._session.space.named(vector)),
            generations=self._state.generations,
            checkpoints=checkpoints,
            stopped=stopped,
            images=self._evaluator.images,
            seconds=self._evaluator.seconds,
            dropped=self._evaluator.dropped,
        )
