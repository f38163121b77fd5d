"""Measure before searching: how noisy scores are, and whether cheaper images would do.

A small share of a run's images decides how the rest is spent: how many candidates and prompts make
a generation, and at what fidelity they are sampled. Checkpoints and final figures are always at
the full one.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from calibri.arrays import Scores, Vector
from calibri.config import RunConfig, SearchConfig
from calibri.errors import ConfigError, RewardError
from calibri.planning import measures_first
from calibri.progress import Progress
from calibri.prompts import Buckets
from calibri.results import (
    FULL,
    Fidelity,
    FidelityResult,
    Figure,
    FirstMeasurement,
    VarianceComponents,
)
from calibri.rewards import scale_of
from calibri.runs.basis import make_search
from calibri.runs.probe.agreement import bias_slope, rank_correlation, refusal
from calibri.runs.probe.cheaper import relative_cost, try_out
from calibri.runs.probe.variance import expected_tau, recommend, reliability, variance_components
from calibri.runs.session import Session
from calibri.scoring import Evaluator
from calibri.seeds import derive_seed

PHASE = "measuring"
SHARE = 0.05
_CANDIDATES, _PROMPTS, _SEEDS = 20, 32, 2
_LEAST_CANDIDATES, _LEAST_PROMPTS = 8, 8
# Fidelities tried in any case: a sure tau of two is worth more than a doubtful one of many.
_LEAST_TRIALS = 2


@dataclass(frozen=True)
class Design:
    """What is sampled first.

    Attributes:
        candidates: drawn at the first step size; the original model comes beside them.
        prompts: training prompts.
        seeds: noise seeds per prompt.
        fidelities: what may be tried, see ``cheaper_fidelities``.
        trials: how many of them are tried at most.
    """

    candidates: int
    prompts: int
    seeds: int
    fidelities: tuple[tuple[Fidelity, ...], ...] = ()
    trials: int = 0

    @property
    def images_at_once(self) -> int:
        """Images of one fidelity."""
        return (self.candidates + 1) * self.prompts * self.seeds

    @property
    def images(self) -> int:
        """Images sampled at most."""
        return self.images_at_once * (1 + self.trials)


def choose_design(
    config: RunConfig,
    planned_images: int,
    num_prompts: int,
    fidelities: Sequence[Sequence[Fidelity]],
) -> Design | None:
    """Decide whether a run is measured first, and with how many images.

    Args:
        config: of the run; ``search.probe`` asks for it or forbids it.
        planned_images: of the run without it.
        num_prompts: training prompts.
        fidelities: what may be tried, see ``cheaper_fidelities``.

    Returns:
        At most 20 candidates on 32 prompts with 2 seeds, shrunk until two fidelities can be tried
        with a twentieth of the run's images, but not below 8 candidates on 8 prompts; what is left
        of the twentieth is for more fidelities. None when it is off.
    """
    search = config.search
    if not measures_first(search, planned_images) or num_prompts < _LEAST_PROMPTS:
        return None
    kept = tuple(map(tuple, fidelities))
    # All of them one by one, and the best of each kind together.
    most = sum(map(len, kept)) + (len(kept) > 1)
    seeds = max(_SEEDS, search.images_per_prompt)
    designs = [
        Design(c, min(p, num_prompts), seeds, kept, min(most, _LEAST_TRIALS))
        for c, p in ((_CANDIDATES, _PROMPTS), (_CANDIDATES, 16), (12, 16), (12, 12))
    ]
    budget = SHARE * planned_images
    least = replace(designs[0], candidates=_LEAST_CANDIDATES, prompts=_LEAST_PROMPTS)
    design = next((design for design in designs if design.images <= budget), least)
    affordable = int(budget / design.images_at_once) - 1
    return replace(design, trials=max(design.trials, min(most, affordable)))


def check_probe(config: RunConfig, num_prompts: int) -> None:
    """Refuse to measure first, where it is asked for, what cannot be measured.

    Raises:
        ConfigError: the search is of another method, or there are too few training prompts.
    """
    if config.search.probe and not config.search.method_info.measures_first:
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
    session: Session, evaluator: Evaluator, progress: Progress, design: Design
) -> FirstMeasurement:
    """Score some candidates, estimate where the variance is from, and choose how to search.

    Everything goes through the evaluator, so that a resumed run reads it from its journal and
    decides the same.

    Args:
        session: the model, its rewards and its prompts.
        evaluator: keeps the scores.
        progress: is told what was decided.
        design: what to sample.

    Raises:
        RewardError: so many scores failed that fewer than 2 prompts are left.
    """
    before = evaluator.images
    progress.phase(PHASE, design.images)
    measurement = Measurement(session, evaluator, design)
    full = measurement.table(FULL)
    whole = _complete(full)
    components = variance_components(whole[1:])  # of the candidates; row 0 is the original model
    tried = measurement.fidelities(full, components)
    accepted = [result for result in tried if not result.refused]
    cheapest = min(accepted, key=lambda found: (found.cost, -found.tau.low), default=None)
    popsize, bucket_size = measurement.split(components)
    trusted = reliability(components, bucket_size, session.config.search.images_per_prompt)
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
        fidelity=cheapest.fidelity if cheapest else FULL,
        reasons=[],
    )
    reasons = _reasons(found, measurement.configured, measurement.unusable)
    found = found.model_copy(update={"reasons": reasons})
    for reason in found.reasons:
        progress.message(reason)
    return found


def search_update(config: SearchConfig, found: FirstMeasurement) -> SearchConfig:
    """Put what was chosen into the configuration of a search."""
    chosen = {
        "popsize": found.popsize,
        "bucket_size": found.bucket_size,
        "fidelity": found.fidelity,
    }
    return config.model_copy(update=chosen)


class Measurement:
    """Tables of scores of one design.

    Args:
        session: the model, its rewards and its prompts.
        evaluator: keeps the scores.
        design: what to sample.

    Attributes:
        unusable: why fidelities were not tried.
    """

    def __init__(self, session: Session, evaluator: Evaluator, design: Design) -> None:
        self._session = session
        self._evaluator = evaluator
        self._design = design
        self._seed = derive_seed(session.config.seed, PHASE)
        self._prompts = Buckets(session.prompts.train, self._seed).draw(design.prompts)
        self._vectors = [session.space.start, *self._candidates()]
        self._tables = 0
        self._last: FidelityResult | None = None
        self.unusable: list[str] = []

    def _candidates(self) -> Sequence[Vector]:
        """What the first generation of a search draws, with a seed of its own."""
        config = self._session.config
        search = config.search.model_copy(update={"popsize": self._design.candidates})
        own = config.model_copy(update={"seed": self._seed, "search": search})
        asked = make_search(self._session.space, own, self._session.start).ask()
        return self._evaluator.pin(PHASE, 0, asked)

    def table(self, fidelity: Fidelity) -> Scores:
        """Scores at a fidelity, (original and candidates, prompts, seeds)."""
        session, count = self._session, self._design.seeds
        noises = session.noises(PHASE, 0, self._prompts, count)
        coefficients = [session.space.coefficients(vector) for vector in self._vectors]
        measures = session.objective
        step, self._tables = self._tables, self._tables + 1
        tables = self._evaluator.score(PHASE, step, coefficients, noises, measures, fidelity)
        plain = session.mixture.is_plain
        scales = {} if plain else {name: scale_of(name, t[:1]) for name, t in tables.items()}
        scores = session.mixture.combine(tables, scales)
        return np.asarray(scores.reshape(len(self._vectors), len(self._prompts), count))

    def fidelities(self, full: Scores, components: VarianceComponents) -> list[FidelityResult]:
        """Try cheaper fidelities of each kind in turn, and last the best of each together."""
        singles = (self.fidelity(single, full, components) for single in self._singles())
        found = list(itertools.islice(singles, self._design.trials))
        together = _together([result.fidelity for result in found if not result.refused])
        if together is not None and len(found) < self._design.trials:
            found.append(self.fidelity(together, full, components))
        return found

    def _singles(self) -> Iterator[Fidelity]:
        """Go through the kinds in turn; of each, the first that is refused is the last."""
        closed: set[int] = set()
        for rung in itertools.zip_longest(*self._design.fidelities):
            for kind, fidelity in enumerate(rung):
                if fidelity is None or kind in closed or not self._usable(fidelity):
                    closed.add(kind)
                    continue
                yield fidelity
                if self._last is not None and self._last.refused:
                    closed.add(kind)

    def _usable(self, fidelity: Fidelity) -> bool:
        """Say whether the pipeline and the rewards take images of another size or text."""
        try:
            try_out(self._session, fidelity)
        except ConfigError as error:
            self.unusable.append(f"{fidelity.label} was not tried: {error}")
            return False
        return True

    def fidelity(
        self, fidelity: Fidelity, full: Scores, components: VarianceComponents
    ) -> FidelityResult:
        """Try one fidelity.

        Args:
            fidelity: cheaper than the full one.
            full: scores at full fidelity, as ``table`` gives them.
            components: of these.
        """
        cheap, full = _paired(self.table(fidelity), full)
        tau = rank_correlation(cheap[1:], full[1:], self._seed)
        bias = bias_slope(cheap, full, self._distances(), self._seed)
        refused = refusal(tau, bias, math.sqrt(max(0.0, components.candidate)))
        self._last = FidelityResult(
            fidelity=fidelity,
            label=fidelity.label,
            cost=relative_cost(self._session, fidelity),
            tau=tau,
            bias=bias,
            refused=refused,
        )
        return self._last

    def _distances(self) -> Scores:
        """Distance of each row from the start, the candidates' being 1 on average."""
        start = self._session.start
        distances = np.array([np.linalg.norm(vector - start) for vector in self._vectors])
        return np.asarray(distances / distances[1:].mean())

    def self_tau(self, full: Scores) -> Figure:
        """Rank correlation of the full fidelity with itself on other noise."""
        half = full.shape[2] // 2
        first, second = full[1:, :, :half], full[1:, :, half : 2 * half]
        return rank_correlation(first.mean(axis=2), second.mean(axis=2), self._seed)

    @property
    def configured(self) -> tuple[int, int]:
        """Candidates and prompts of the first generation, as configured."""
        search = self._session.config.search
        return search.population(self._session.space.size), search.bucket_size

    def split(self, components: VarianceComponents) -> tuple[int, int]:
        """Candidates and prompts of the first generation, as measured; a given population stays."""
        session = self._session
        popsize, bucket_size = self.configured
        if session.config.search.popsize is not None:
            return popsize, bucket_size
        return recommend(
            components,
            popsize=popsize,
            bucket_size=bucket_size,
            seeds=session.config.search.images_per_prompt,
            dimension=session.space.size,
            # The last bucket is the largest.
            num_prompts=int(len(session.prompts.train) / session.config.search.bucket_growth),
        )


def _together(accepted: Sequence[Fidelity]) -> Fidelity | None:
    """Join what was accepted of each kind, the last being the cheapest of it; None of one kind."""
    joined = functools.reduce(Fidelity.updated, accepted, FULL)
    return None if joined == FULL or joined in accepted else joined


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


def _reasons(
    found: FirstMeasurement, configured: tuple[int, int], unusable: Sequence[str]
) -> list[str]:
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
    verdicts = [_verdict(result) for result in found.fidelities]
    return [*reasons, *unusable, *verdicts, _choice(found)]


def _verdict(result: FidelityResult) -> str:
    tau = result.tau
    what = f"Images at {result.label}, {result.cost:.0%} of the cost, rank candidates with tau "
    interval = f"{tau.mean:.2f} [{tau.low:.2f}, {tau.high:.2f}]"
    outcome = f"not used, since {result.refused}" if result.refused else "good enough to search by"
    return f"{what}{interval}: {outcome}."


def _choice(found: FirstMeasurement) -> str:
    rest = ", like" if found.fidelity == FULL else "; at full fidelity are"
    what = f"The generations are sampled at {found.fidelity.label}"
    return f"{what}{rest} checkpoints and final figures."
