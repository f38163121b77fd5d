"""Measure before searching: how noisy scores are, and whether cheaper images would do.

A small share of a run's images decides how the rest is spent: how many candidates and prompts make
a generation, and at how many steps they are sampled. Checkpoints and final figures are always at
the full number of steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from calibri.coefficients import Vector
from calibri.config import RunConfig, SearchConfig
from calibri.engine import Engine
from calibri.errors import ConfigError, RewardError
from calibri.evaluator import Evaluator
from calibri.fidelity import bias_slope, rank_correlation, refusal
from calibri.optimise import make_search
from calibri.procedures import measures_first
from calibri.progress import Progress
from calibri.prompts import bucket
from calibri.results import FidelityResult, Figure, FirstMeasurement, VarianceComponents
from calibri.rewards.mixing import scale_of
from calibri.seeds import derive_seed
from calibri.units import Scores
from calibri.variance import expected_tau, recommend, reliability, variance_components

PHASE = "measuring"
SHARE = 0.05
_CANDIDATES, _PROMPTS, _SEEDS = 20, 32, 2
_LEAST_CANDIDATES, _LEAST_PROMPTS = 8, 8
# Steps as shares of the full number, the cheapest last; the first refused one ends the list.
_STEP_SHARES = (0.75, 0.5)


@dataclass(frozen=True)
class Design:
    """What is sampled first.

    Attributes:
        candidates: drawn at the first step size; the original model comes beside them.
        prompts: training prompts.
        seeds: noise seeds per prompt.
        steps: cheaper numbers of steps that are tried, the cheapest last.
    """

    candidates: int
    prompts: int
    seeds: int
    steps: tuple[int, ...]

    @property
    def images(self) -> int:
        """Images sampled at most."""
        return (self.candidates + 1) * self.prompts * self.seeds * (1 + len(self.steps))


def choose_design(config: RunConfig, planned_images: int, num_prompts: int) -> Design | None:
    """Decide whether a run is measured first, and with how many images.

    Args:
        config: of the run; ``search.probe`` asks for it or forbids it.
        planned_images: of the run without it.
        num_prompts: training prompts.

    Returns:
        At most 20 candidates on 32 prompts with 2 seeds, shrunk until it takes a twentieth of the
        run's images, but not below 8 candidates on 8 prompts; None when it is off.
    """
    search = config.search
    if not measures_first(search, planned_images) or num_prompts < _LEAST_PROMPTS:
        return None
    full = config.sampling.num_inference_steps
    steps = sorted({max(1, round(share * full)) for share in _STEP_SHARES} - {full}, reverse=True)
    seeds = max(_SEEDS, search.images_per_prompt)
    designs = [
        Design(c, min(p, num_prompts), seeds, tuple(steps))
        for c, p in ((_CANDIDATES, _PROMPTS), (_CANDIDATES, 16), (12, 16), (12, 12))
    ]
    affordable = (design for design in designs if design.images <= SHARE * planned_images)
    least = Design(_LEAST_CANDIDATES, _LEAST_PROMPTS, seeds, tuple(steps))
    return next(affordable, least)


def check_probe(config: RunConfig, num_prompts: int) -> None:
    """Refuse to measure first, where it is asked for, what cannot be measured.

    Raises:
        ConfigError: the search is of another method, or there are too few training prompts.
    """
    if config.search.probe and config.search.method != "calibri":
        raise ConfigError(
            f"search.probe chooses for the method 'calibri'; search.method is "
            f"'{config.search.method}'. Leave search.probe out."
        )
    if config.search.probe and num_prompts < _LEAST_PROMPTS:
        raise ConfigError(
            f"search.probe needs {_LEAST_PROMPTS} training prompts, there are {num_prompts}. Add "
            "prompts, or set it to false."
        )


def measure_first(
    engine: Engine, evaluator: Evaluator, progress: Progress, design: Design
) -> FirstMeasurement:
    """Score some candidates, estimate where the variance is from, and choose how to search.

    Everything goes through the evaluator, so that a resumed run reads it from its journal and
    decides the same.

    Args:
        engine: the model, its rewards and its prompts.
        evaluator: keeps the scores.
        progress: is told what was decided.
        design: what to sample.

    Raises:
        RewardError: so many scores failed that fewer than 2 prompts are left.
    """
    before = evaluator.images
    progress.phase(PHASE, design.images)
    measurement = _Measurement(engine, evaluator, design)
    full = measurement.table(engine.config.sampling.num_inference_steps)
    whole = _complete(full)
    components = variance_components(whole[1:])  # of the candidates; row 0 is the original model
    tried = measurement.fidelities(full, components)
    accepted = [result.num_inference_steps for result in tried if not result.refused]
    steps = min(accepted, default=None)
    popsize, bucket_size = measurement.split(components)
    trusted = reliability(components, bucket_size, engine.config.search.images_per_prompt)
    found = FirstMeasurement(
        candidates=design.candidates,
        num_prompts=whole.shape[1],
        images_per_prompt=design.seeds,
        images=evaluator.images - before,
        components=components,
        reliability=trusted,
        expected_tau=expected_tau(trusted),
        self_tau=measurement.self_tau(whole),
        fidelities=tried,
        popsize=popsize,
        bucket_size=bucket_size,
        num_inference_steps=steps,
        reasons=[],
    )
    found = found.model_copy(update={"reasons": _reasons(found, measurement.configured)})
    for reason in found.reasons:
        progress.message(reason)
    return found


def search_update(config: SearchConfig, found: FirstMeasurement) -> SearchConfig:
    """Put what was chosen into the configuration of a search."""
    chosen = {
        "popsize": found.popsize,
        "bucket_size": found.bucket_size,
        "num_inference_steps": found.num_inference_steps,
    }
    return config.model_copy(update=chosen)


class _Measurement:
    """Tables of scores of one design."""

    def __init__(self, engine: Engine, evaluator: Evaluator, design: Design) -> None:
        self._engine = engine
        self._evaluator = evaluator
        self._design = design
        self._seed = derive_seed(engine.config.seed, PHASE)
        self._prompts = bucket(engine.prompts.train, design.prompts, self._seed, 0)
        self._vectors = [engine.space.start, *self._candidates()]

    def _candidates(self) -> Sequence[Vector]:
        """What the first generation of a search draws, with a seed of its own."""
        config = self._engine.config
        search = config.search.model_copy(update={"popsize": self._design.candidates})
        own = config.model_copy(update={"seed": self._seed, "search": search})
        return make_search(self._engine.space, own, self._engine.start).ask()

    def table(self, steps: int) -> Scores:
        """Scores at a number of steps, (original and candidates, prompts, seeds)."""
        engine, count = self._engine, self._design.seeds
        noises = engine.noises(PHASE, 0, self._prompts, count)
        coefficients = [engine.space.coefficients(vector) for vector in self._vectors]
        measures = engine.measures(held_out=False)
        tables = self._evaluator.score(PHASE, steps, coefficients, noises, measures, steps)
        plain = engine.mixture.is_plain
        scales = {} if plain else {name: scale_of(name, t[:1]) for name, t in tables.items()}
        scores = engine.mixture.combine(tables, scales)
        return np.asarray(scores.reshape(len(self._vectors), len(self._prompts), count))

    def fidelities(self, full: Scores, components: VarianceComponents) -> list[FidelityResult]:
        """Try fewer steps until a number of them is refused."""
        found: list[FidelityResult] = []
        for steps in self._design.steps:
            found.append(self._fidelity(steps, full, math.sqrt(max(0.0, components.candidate))))
            if found[-1].refused:
                break
        return found

    def _fidelity(self, steps: int, full: Scores, spread: float) -> FidelityResult:
        cheap, full = _paired(self.table(steps), full)
        tau = rank_correlation(cheap[1:], full[1:], self._seed)
        bias = bias_slope(cheap, full, self._distances(), self._seed)
        refused = refusal(tau, bias, spread)
        return FidelityResult(num_inference_steps=steps, tau=tau, bias=bias, refused=refused)

    def _distances(self) -> Scores:
        """Distance of each row from the start, the candidates' being 1 on average."""
        start = self._engine.start
        distances = np.array([np.linalg.norm(vector - start) for vector in self._vectors])
        return np.asarray(distances / distances[1:].mean())

    def self_tau(self, full: Scores) -> Figure:
        """Rank correlation of the full number of steps with itself on other noise."""
        half = full.shape[2] // 2
        first, second = full[1:, :, :half], full[1:, :, half : 2 * half]
        return rank_correlation(first.mean(axis=2), second.mean(axis=2), self._seed)

    @property
    def configured(self) -> tuple[int, int]:
        """Candidates and prompts of the first generation, as configured."""
        search = self._engine.config.search
        return search.popsize_for(self._engine.space.size), search.bucket_size

    def split(self, components: VarianceComponents) -> tuple[int, int]:
        """Candidates and prompts of the first generation, as measured."""
        engine = self._engine
        popsize, bucket_size = self.configured
        return recommend(
            components,
            popsize=popsize,
            bucket_size=bucket_size,
            seeds=engine.config.search.images_per_prompt,
            dimension=engine.space.size,
            # The last bucket is the largest.
            num_prompts=int(len(engine.prompts.train) / engine.config.search.bucket_growth),
        )


def _complete(table: Scores) -> Scores:
    """Leave out prompts of which an image could not be scored.

    Raises:
        RewardError: fewer than 2 are left.
    """
    kept = np.asarray(np.isfinite(table).all(axis=(0, 2)))
    if kept.sum() < 2:
        raise RewardError(
            f"Only {int(kept.sum())} of {kept.size} prompts could be scored for all candidates; "
            "measuring first needs 2. Check the reward, or set search.probe to false."
        )
    return np.asarray(table[:, kept])


def _paired(cheap: Scores, full: Scores) -> tuple[Scores, Scores]:
    """Means over noise on the prompts that both tables have whole."""
    count = cheap.shape[2]
    both = _complete(np.concatenate([cheap, full], axis=2))
    return both[:, :, :count].mean(axis=2), both[:, :, count:].mean(axis=2)


def _reasons(found: FirstMeasurement, configured: tuple[int, int]) -> list[str]:
    parts = found.components
    split = f"{found.popsize} candidates x {found.bucket_size} prompts"
    kept = (found.popsize, found.bucket_size) == configured
    reasons = [
        f"Variances: candidates {parts.candidate:.3g}, candidate x prompt "
        f"{parts.candidate_prompt:.3g}, residual {parts.residual:.3g} (prompts {parts.prompt:.3g} "
        f"and their noise {parts.noise:.3g} are common to all candidates).",
        f"{split} a generation{', as configured' if kept else ''}: a bucket's ranking has a "
        f"reliability of {found.reliability:.2f}, an expected tau of {found.expected_tau:.2f} with "
        "the true one.",
    ]
    return reasons + [_verdict(result) for result in found.fidelities]


def _verdict(result: FidelityResult) -> str:
    tau = result.tau
    what = f"{result.num_inference_steps} steps rank candidates with tau {tau.mean:.2f} "
    interval = f"[{tau.low:.2f}, {tau.high:.2f}]"
    outcome = f"not used, since {result.refused}" if result.refused else "good enough to search by"
    return f"{what}{interval}: {outcome}."
