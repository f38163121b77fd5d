"""Search by the gradient of the reward, where the reward has one.

The black-box search (``runs.loop``) needs nothing but scores and stays the default. A reward
that is differentiable also tells in which direction every scalar should move: its gradient is taken
through the decoder and the steps of the unmodified pipeline, and Adam follows it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibri.arrays import Scores, Vector
from calibri.coefficients import SearchSpace
from calibri.errors import ConfigError, RewardError
from calibri.pipelines import Site
from calibri.progress import Progress
from calibri.results import FULL
from calibri.rewards import DifferentiableReward, Reward
from calibri.runs.loop import Optimiser, search_basis, search_bounds
from calibri.runs.session import Session
from calibri.sampling import Noise
from calibri.scoring import Evaluator, decode
from calibri.search import AdamSearch, images_of_generation, popsize_for, tail_mean

# What an image with its gradient costs in images without: one forward, and a backward of about two.
_IMAGES_PER_GRADIENT = 3


@dataclass(frozen=True)
class Slope:
    """The mean of a reward over images and how it changes with the vector.

    Attributes:
        scores: float64 (noises,), NaN where an image was dropped.
        gradient: of the mean of the others, float64 (n,).
    """

    scores: Scores
    gradient: Vector


def jacobian(space: SearchSpace, sites: Sequence[Site]) -> NDArray[np.float64]:
    """How the scales of the sites change with the vector: a constant, since both are linear.

    Returns:
        float64 (n, ...), behind the first axis the shape of ``Coefficients.site_scales``.
    """
    zero, units = np.zeros(space.size), np.eye(space.size)
    origin = space.coefficients(zero).site_scales(sites)
    return np.stack([space.coefficients(unit).site_scales(sites) - origin for unit in units])


def check_gradient(
    session: Session, last_steps: int | None = None
) -> dict[str, DifferentiableReward]:
    """Find the rewards of an objective that can be differentiated, before any work.

    Raises:
        ConfigError: the objective or the search space has no gradient, or there are fewer steps.
        UnsupportedModelError: the pipeline cannot be run with gradients.
    """
    session.bench.sampler.check_gradient(last_steps)
    return differentiable_rewards(session)


def differentiable_rewards(session: Session) -> dict[str, DifferentiableReward]:
    """Find the rewards of the objective, or say why it cannot be searched by gradients.

    Raises:
        ConfigError: the objective or the search space has no gradient.
    """
    mixture = session.mixture
    if mixture.constraints or mixture.method != "zscore":
        what = "Constraints have" if mixture.constraints else f"The mixing '{mixture.method}' has"
        raise ConfigError(
            f"{what} no gradient here. Use a single reward or a mixture by z-scores, or the "
            "black-box search."
        )
    if session.config.search.fidelity != FULL:
        raise ConfigError(
            f"Gradients are taken through images as in sampling; search.fidelity asks for "
            f"{session.config.search.fidelity.label}. Leave it out, or use the black-box search."
        )
    if session.bench.swap is not None:
        raise ConfigError(
            "A gradient needs the pipeline and the rewards on the device together. Set "
            "rewards.offload to false, or use the black-box search."
        )
    if session.space.factors:
        raise ConfigError(
            f"The {' and the '.join(session.space.factors)} of the sampling have no gradient here. "
            "Set space.guidance and space.shift to false, or use the black-box search."
        )
    if session.space.branches is not None:
        raise ConfigError(
            "Members of an ensemble start without weight and are not run, so they have no "
            "gradient. Set space.members to 1, or use the black-box search."
        )
    found = {name: session.bench.measures.rewards.get(name) for name in mixture.names}
    lacking = [name for name, reward in found.items() if not _has_gradient(reward)]
    if lacking:
        raise ConfigError(
            f"Reward '{lacking[0]}' has no gradient: it does not score float images. Choose one "
            "that `calibri rewards list` shows as differentiable, or use the black-box search."
        )
    return {n: reward for n, reward in found.items() if isinstance(reward, DifferentiableReward)}


def _has_gradient(reward: Reward | None) -> bool:
    return isinstance(reward, DifferentiableReward) and reward.info.differentiable


class Gradients:
    """Gradients of rewards with respect to the flat vector, kept in the journal unit by unit.

    Args:
        session: its pipeline samples; the weights of the pipeline no longer ask for gradients.
        evaluator: keeps what was computed.
        last_steps: steps of the sampler that carry a gradient, which bounds memory; None for all.

    Raises:
        ConfigError: the objective or the search space has no gradient, or there are fewer steps.
        UnsupportedModelError: the pipeline cannot be run with gradients.
    """

    def __init__(
        self, session: Session, evaluator: Evaluator, last_steps: int | None = None
    ) -> None:
        check_gradient(session, last_steps)
        self._jacobian = jacobian(session.space, session.bench.scaler.sites)
        self._session = session
        self._evaluator = evaluator
        self._last_steps = last_steps

    def __call__(
        self, phase: str, step: int, vector: Vector, noises: Sequence[Noise]
    ) -> dict[str, Slope]:
        """Differentiate the mean of every reward of the objective.

        Args:
            phase: part of the run, for the journal.
            step: number within the phase.
            vector: where, float64 (n,).
            noises: (prompt, seed) pairs to average over.

        Raises:
            RewardError: a score or a gradient is not finite, and the policy is not to drop the
                image or nothing would be left.
            RunError: one image alone does not fit into memory.
        """
        names = self._session.objective
        records = self._evaluator.differentiate(
            phase, step, self._session.space.coefficients(vector), noises, names, self._last_steps
        )
        slopes = {name: self._mean(name, records) for name in names}
        failed = np.isnan(next(iter(slopes.values())).scores)
        self._evaluator.dropped += int(failed.sum())
        return slopes

    def _mean(self, name: str, records: Sequence[Mapping[str, Any]]) -> Slope:
        scores = np.concatenate([decode(record["scores"][name]) for record in records])
        count = int(np.isfinite(scores).sum())
        if not count:
            raise RewardError(
                f"Each of the {len(scores)} images of an update was dropped: the score of '{name}' "
                "or its gradient was not finite. Check the reward and the pipeline."
            )
        total = np.sum([self._flat(record["gradients"][name]) for record in records], axis=0)
        return Slope(scores, total / count)

    def _flat(self, gradient: Any) -> Vector:
        """From the scales of the sites to the flat vector."""
        table = np.array(gradient)
        axes = list(range(table.ndim))
        return np.asarray(
            np.tensordot(self._jacobian, table, axes=([axis + 1 for axis in axes], axes))
        )


class GradientOptimiser(Optimiser):
    """One search by gradients; checkpoints, guard and choice are those of the black-box search.

    A generation has as many updates of Adam as cost about what a generation of the black-box
    search costs: an image with its gradient costs about three without. Every update has a bucket
    of training prompts of its own.

    Args:
        session: its objective is differentiated.
        evaluator: keeps scores and gradients.
        progress: is told of every generation and checkpoint.

    Raises:
        ConfigError: the objective or the search space has no gradient, or there are fewer steps.
        UnsupportedModelError: the pipeline cannot be run with gradients.
    """

    def __init__(self, session: Session, evaluator: Evaluator, progress: Progress) -> None:
        super().__init__(session, evaluator, progress)
        self._gradients = Gradients(session, evaluator, self._config.last_steps)
        self._adam = AdamSearch(
            session.start,
            basis=search_basis(session.space),
            bounds=search_bounds(session.space, self._config),
            learning_rate=self._config.learning_rate,
        )
        self._updates = updates_per_generation(session)

    def _generation(self) -> Vector:
        first = self._done * self._updates
        for number in range(first, first + self._updates):
            noises, slopes = self._update(number)
        self._record_gain(number, noises, slopes)
        return tail_mean(self._state.means, self._config.tail)

    def _update(self, number: int) -> tuple[list[Noise], dict[str, Slope]]:
        noises = self._bucket(number)
        slopes = self._gradients("gradient", number, self._adam.mean, noises)
        parts = [self._weight(name) * slope.gradient for name, slope in slopes.items()]
        self._adam.tell(np.sum(parts, axis=0))
        self._state.means.append(self._adam.mean)
        return noises, slopes

    def _weight(self, name: str) -> float:
        """How much the objective changes with a reward (``Mixture.combine``)."""
        mixture = self._session.mixture
        return 1.0 if mixture.is_plain else mixture.weights[name] / self._scales[name].spread

    def _record_gain(
        self, number: int, noises: Sequence[Noise], slopes: Mapping[str, Slope]
    ) -> None:
        """Record the generation by its last update: the original model is scored on that alone."""
        original = self._tables("search", number, [self._session.space.start], noises)
        pairs = {name: np.stack([original[name][0], s.scores]) for name, s in slopes.items()}
        missing = np.any([np.isnan(pair).any(axis=0) for pair in pairs.values()], axis=0)
        pairs = {name: np.where(missing, np.nan, pair) for name, pair in pairs.items()}
        scores = np.nanmean(self._session.mixture.combine(pairs, self._scales), axis=1)
        self._record(self._done, scores, float(scores[1:].max()), self._adam.sigma)


def updates_per_generation(session: Session) -> int:
    """Updates that cost about what the candidates of a generation cost."""
    config = session.config.search
    size, popsize = config.final_bucket_size, popsize_for(config, session.space.size)
    images = images_of_generation(popsize, size, config.race_first, config.race_keep) - size
    return max(1, images // (size * _IMAGES_PER_GRADIENT))
