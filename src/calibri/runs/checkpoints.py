"""Vectors of a search on prompts it never saw, and which of them to return (spec section 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calibri.arrays import Scores, Vector
from calibri.coefficients import Coefficients
from calibri.config import RewardConfig
from calibri.errors import RewardError
from calibri.progress import Progress
from calibri.results import Checkpoint, Figure
from calibri.rewards import Scale
from calibri.runs.image_sets import ImageSetWatch
from calibri.runs.session import Session
from calibri.scoring import Asked, Evaluator, complete
from calibri.search import reached_plateau, select
from calibri.seeds import derive_seed
from calibri.statistics import paired_difference


@dataclass(frozen=True)
class _Scored:
    """A vector, what is told of it, and its difference to the original, float64 (prompts,)."""

    vector: Vector
    checkpoint: Checkpoint
    difference: Scores


@dataclass(frozen=True)
class _Measured:
    """Scores, (1, noises) each, and what ``ImageSetWatch`` compares."""

    scores: dict[str, Scores]
    image_sets: tuple[dict[str, Scores], dict[str, Scores]]


class Checkpoints:
    """Checkpoints of one search, all on the same prompts and noise, so that they compare.

    Args:
        session: scores them.
        evaluator: keeps their scores.
        progress: is told of each.
    """

    def __init__(self, session: Session, evaluator: Evaluator, progress: Progress) -> None:
        self._session = session
        self._evaluator = evaluator
        self._progress = progress
        self._count = session.config.search.images_per_prompt
        self._noises = session.noises("validation", 0, session.prompts.validation, self._count)
        self._watch = ImageSetWatch(session, evaluator)
        self._baseline: _Measured | None = None
        self._scored: list[_Scored] = []

    def expect(self) -> None:
        """Say that the original model will be scored, whatever the search finds."""
        self._expect(0, self._session.space.start)

    def add(self, vector: Vector, done: int, scales: Mapping[str, Scale]) -> None:
        """Score a vector after ``done`` generations."""
        session = self._session
        self._expect(done, vector)
        if self._baseline is None:
            self.expect()
            self._baseline = self._score(0, session.space.start)
        measured = self._score(done, vector)
        pairs, prompts = self._pairs(self._baseline.scores, measured.scores)
        mixed = session.mixture.combine(pairs, scales)
        seed = derive_seed(session.config.seed, "bootstrap", done)
        held_out = {name: self._figure(pairs[name], seed) for name in session.guards}
        image_sets = self._watch.compare(measured.image_sets, self._baseline.image_sets)
        worse = [name for name, figure in held_out.items() if figure.high < 0]
        checkpoint = Checkpoint(
            generation=done - 1,
            difference=self._figure(mixed, seed),
            held_out=held_out,
            image_sets=image_sets,
            vetoed_by=worse + self._watch.vetoes(image_sets),
        )
        difference = np.full(len(prompts), np.nan)
        difference[prompts] = np.diff(mixed, axis=0).reshape(-1, self._count).mean(axis=1)
        self._scored.append(_Scored(vector, checkpoint, difference))
        self._progress.checkpoint(checkpoint)

    @property
    def _rewards(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self._session.objective, *self._session.guards)))

    def _asked(self, step: int, candidate: Coefficients) -> Asked:
        measures = tuple(dict.fromkeys((*self._rewards, *self._watch.measures)))
        return Asked("validation", step, [candidate], self._noises, measures)

    def _expect(self, step: int, vector: Vector) -> None:
        candidate = self._session.space.coefficients(vector)
        self._watch.expect(step, candidate)
        self._evaluator.expect(self._asked(step, candidate))

    def _score(self, step: int, vector: Vector) -> _Measured:
        candidate = self._session.space.coefficients(vector)
        tables = self._evaluator.score(*self._asked(step, candidate))
        found = {name: table[0] for name, table in tables.items()}
        more = self._watch.more(step, candidate)
        return _Measured({name: tables[name] for name in self._rewards}, (found, more))

    def _pairs(
        self, baseline: Mapping[str, Scores], tables: Mapping[str, Scores]
    ) -> tuple[dict[str, Scores], NDArray[np.bool_]]:
        """Rows (original, vector) for each measure, and which prompts were dropped in neither."""
        both = {name: np.vstack([baseline[name], tables[name]]) for name in tables}
        by_prompt = [
            pair.reshape(-1, len(pair[0]) // self._count, self._count) for pair in both.values()
        ]
        complete(*[rows for pair in by_prompt for rows in pair])  # refuses too few
        kept = np.all([np.isfinite(pair).all(axis=(0, 2)) for pair in by_prompt], axis=0)
        return {name: pair[:, np.repeat(kept, self._count)] for name, pair in both.items()}, kept

    def _figure(self, pair: Scores, seed: int) -> Figure:
        theirs, ours = pair.reshape(2, -1, self._count)
        return paired_difference(ours, theirs, seed)

    @property
    def stop_reason(self) -> str:
        """Why the search should end; empty while it should go on."""
        checkpoints = [scored.checkpoint for scored in self._scored]
        gains = [checkpoint.difference.mean for checkpoint in checkpoints]
        if reached_plateau(gains, self._session.config.search.plateau):
            return "the reward has reached its plateau"
        return guard_reason(checkpoints, self._session.config.rewards)

    def choose(self) -> tuple[Vector, list[Checkpoint]]:
        """Choose what the search returns.

        Returns:
            A checkpoint that is surely better than the original, or else the original; and all
            checkpoints, the chosen one marked.

        Raises:
            RewardError: fewer than two prompts were dropped at no checkpoint.
        """
        checkpoints = [scored.checkpoint for scored in self._scored]
        table = np.stack([scored.difference for scored in self._scored])
        count = table.shape[1]
        table = table[:, np.isfinite(table).all(axis=0)]
        if table.shape[1] < 2:
            raise RewardError(
                f"{table.shape[1]} of {count} validation prompts could be scored at all "
                f"{len(table)} checkpoints; to choose among them takes 2. Check the reward."
            )
        table[[bool(checkpoint.vetoed_by) for checkpoint in checkpoints]] = -np.inf
        best = select(table, self._session.config.seed)
        if best is None:
            return self._session.space.start, checkpoints
        checkpoints[best] = checkpoints[best].model_copy(update={"chosen": True})
        return self._scored[best].vector, checkpoints


def guard_reason(checkpoints: Sequence[Checkpoint], rewards: RewardConfig) -> str:
    """Say why the guard ends a search, or nothing while it does not."""
    last = checkpoints[-2:]
    if rewards.guard != "stop" or len(last) < 2 or not all(c.vetoed_by for c in last):
        return ""
    names = ", ".join(dict.fromkeys(name for c in last for name in c.vetoed_by))
    return f"two checkpoints in a row were surely worse than the original in {names}"
