"""The search loop: ask, score, tell, validate, choose (spec section 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from calibri.coefficients import SearchSpace, Vector
from calibri.config import RewardConfig, RunConfig, SearchConfig
from calibri.engine import Engine
from calibri.evaluator import Evaluator, complete
from calibri.progress import Progress
from calibri.prompts import bucket
from calibri.results import Checkpoint, Figure, Generation, SearchResult
from calibri.rewards.mixing import Scale, scale_of
from calibri.sampling import Noise
from calibri.search import CMASearch, default_popsize, reached_plateau, tail_mean
from calibri.seeds import derive_seed
from calibri.statistics import paired_difference
from calibri.units import Measure, Scores

_SCALE_PROMPTS = 128


def make_search(space: SearchSpace, config: RunConfig, start: Vector | None = None) -> CMASearch:
    """Start a search at a vector, or at the original model (spec section 3)."""
    search = config.search
    return CMASearch(
        space.start if start is None else start,
        basis=np.eye(space.size) if search.method == "reference" else search_basis(space),
        bounds=search_bounds(space, search),
        sigma0=search.sigma0,
        popsize=search.popsize or default_popsize(space.size),
        seed=config.seed,
    )


def search_bounds(space: SearchSpace, config: SearchConfig) -> NDArray[np.float64]:
    """Lowest and highest value of every entry of a vector, (n, 2)."""
    return space.bounds(config.scale_bounds, config.output_bounds)


def search_basis(space: SearchSpace) -> NDArray[np.float64]:
    """Columns in which a step of the same length changes the images about as much.

    A gate is its own column. Under guidance the two output weights nearly cancel, so that a step
    of one alone changes the scale of the prediction by a multiple of itself. Their columns are
    what they mean: the scale of the prediction, (w, 1 - w), and the guidance, (w, -w); in an
    ensemble one column of the latter kind for each further member.
    """
    basis = np.eye(space.size)
    outputs = np.flatnonzero(space.is_output)
    if len(outputs) > 1:
        w = space.start_weights[0]
        directions = -w * np.eye(len(outputs))
        directions[0] = w
        directions[:, 0] = space.start_weights
        basis[np.ix_(outputs, outputs)] = directions
    return basis


def scale_prompts(engine: Engine) -> int:
    """Count the training prompts on which the rewards of a mixture are scaled."""
    return 0 if engine.mixture.is_plain else min(_SCALE_PROMPTS, len(engine.prompts.train))


def guard_reason(checkpoints: Sequence[Checkpoint], rewards: RewardConfig) -> str:
    """Say why held-out rewards end a search, or nothing while they do not."""
    last = checkpoints[-2:]
    if rewards.guard != "stop" or len(last) < 2 or not all(c.vetoed_by for c in last):
        return ""
    names = ", ".join(dict.fromkeys(name for c in last for name in c.vetoed_by))
    return f"held-out rewards fell below the original at two checkpoints in a row: {names}"


def _pairs(
    baseline: Mapping[str, Scores], tables: Mapping[str, Scores], num_prompts: int
) -> dict[str, Scores]:
    """Rows (original, candidate) for each measure, without prompts that were dropped in either."""
    both = [t[name][0].reshape(num_prompts, -1) for t in (baseline, tables) for name in tables]
    kept = [table.ravel() for table in complete(*both)]
    return {name: np.stack([kept[i], kept[len(tables) + i]]) for i, name in enumerate(tables)}


@dataclass
class _State:
    means: list[Vector] = field(default_factory=list)
    generations: list[Generation] = field(default_factory=list)
    checkpoints: list[tuple[Vector, Checkpoint]] = field(default_factory=list)

    @property
    def gains(self) -> list[float]:
        return [g.mean - g.baseline for g in self.generations]


class Optimiser:
    """One search on one engine.

    Args:
        engine: scores candidates.
        evaluator: keeps their scores.
        progress: is told of every generation and checkpoint.
    """

    def __init__(self, engine: Engine, evaluator: Evaluator, progress: Progress) -> None:
        self._engine = engine
        self._evaluator = evaluator
        self._progress = progress
        self._config: SearchConfig = engine.config.search
        self._state = _State()
        self._baseline: dict[str, Scores] = {}
        self._scales: dict[str, Scale] = {}

    @cached_property
    def _search(self) -> CMASearch:
        return make_search(self._engine.space, self._engine.config, self._engine.start)

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
            stopped = self._stop_reason()
            if stopped or self._done % self._config.validate_every == 0:
                self._validate(vector)
                stopped = stopped or guard_reason(self._checkpoints, self._engine.config.rewards)
        return self._choose(stopped)

    def _generation(self) -> Vector:
        engine, search = self._engine, self._search
        number = search.generation
        candidates = search.ask()
        prompts = bucket(engine.prompts.train, self._config.bucket_size, engine.config.seed, number)
        noises = engine.noises("search", number, prompts, self._config.images_per_prompt)
        vectors = [engine.space.start, *candidates]
        tables = self._tables("search", number, vectors, noises)
        scores = np.nanmean(engine.mixture.combine(tables, self._scales), axis=1)
        search.tell(candidates, scores[1:])
        self._state.means.append(search.mean)
        self._record(number, scores, search.sigma)
        if self._config.method == "reference":
            return candidates[int(np.argmax(scores[1:]))]
        return tail_mean(self._state.means, self._config.tail)

    def _tables(
        self,
        phase: str,
        step: int,
        vectors: Sequence[Vector],
        noises: Sequence[Noise],
        guards: Mapping[str, Measure] | None = None,
    ) -> dict[str, Scores]:
        candidates = [self._engine.space.coefficients(vector) for vector in vectors]
        measures = self._engine.measures(held_out=False) | dict(guards or {})
        return self._evaluator.score(phase, step, candidates, noises, measures)

    def _measure_scales(self) -> dict[str, Scale]:
        """Mean and spread of each reward of a mixture, from the original model."""
        engine = self._engine
        if engine.mixture.is_plain:
            return {}
        count = scale_prompts(engine)
        prompts = bucket(engine.prompts.train, count, engine.config.seed, 0)
        noises = engine.noises("scales", 0, prompts, self._config.images_per_prompt)
        tables = self._tables("scales", 0, [engine.space.start], noises)
        return {name: scale_of(name, table) for name, table in tables.items()}

    def _record(self, number: int, scores: Scores, sigma: float) -> None:
        generation = Generation(
            generation=number,
            mean=float(scores[1:].mean()),
            best=float(scores[1:].max()),
            baseline=float(scores[0]),
            sigma=sigma,
            images=self._evaluator.images,
            seconds=self._evaluator.seconds,
        )
        self._state.generations.append(generation)
        self._progress.generation(generation)

    def _validate(self, vector: Vector) -> None:
        engine, done = self._engine, self._done
        # The same prompts and noise at every checkpoint, so that checkpoints compare.
        count = self._config.images_per_prompt
        noises = engine.noises("validation", 0, engine.prompts.validation, count)
        guards = engine.guard_measures()
        if not self._baseline:
            self._baseline = self._tables("validation", 0, [engine.space.start], noises, guards)
        tables = self._tables("validation", done, [vector], noises, guards)
        pairs = _pairs(self._baseline, tables, len(engine.prompts.validation))
        mixed = engine.mixture.combine(pairs, self._scales)
        seed = derive_seed(engine.config.seed, "bootstrap", done)
        held_out = {name: self._difference(pairs[name], seed) for name in guards}
        checkpoint = Checkpoint(
            generation=done - 1,
            difference=self._difference(mixed, seed),
            held_out=held_out,
            vetoed_by=[name for name, figure in held_out.items() if figure.high < 0],
        )
        self._state.checkpoints.append((vector, checkpoint))
        self._progress.checkpoint(checkpoint)

    def _difference(self, pair: Scores, seed: int) -> Figure:
        theirs, ours = pair.reshape(2, -1, self._config.images_per_prompt)
        return paired_difference(ours, theirs, seed)

    @property
    def _checkpoints(self) -> list[Checkpoint]:
        return [checkpoint for _, checkpoint in self._state.checkpoints]

    def _stop_reason(self) -> str:
        config = self._config
        if self._done >= config.generations:
            return f"the budget of {config.generations} generations is used up"
        sigma = self._state.generations[-1].sigma
        small = sigma <= config.stop_sigma * config.sigma0
        if small and reached_plateau(self._state.gains, config.plateau):
            return f"sigma fell to {sigma:.3f} and the reward reached its plateau"
        return ""

    def _choose(self, stopped: str) -> tuple[Vector, SearchResult]:
        vectors = [vector for vector, _ in self._state.checkpoints]
        checkpoints = self._checkpoints
        gains = [-np.inf if c.vetoed_by else c.difference.mean for c in checkpoints]
        best = int(np.argmax(gains))
        vector = self._engine.space.start
        # A calibration that selection prompts do not prefer to the original is not returned.
        if gains[best] > 0:
            vector = vectors[best]
            checkpoints[best] = checkpoints[best].model_copy(update={"chosen": True})
        return vector, SearchResult(
            coefficients=dict(self._engine.space.named(vector)),
            generations=self._state.generations,
            checkpoints=checkpoints,
            stopped=stopped,
            images=self._evaluator.images,
            seconds=self._evaluator.seconds,
            dropped=self._evaluator.dropped,
        )
