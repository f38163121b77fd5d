"""The gradient of a reward with respect to the vector, where the reward has one.

The black-box search needs nothing but scores and stays the default. A reward that is differentiable
also tells in which direction every scalar should move: its gradient is taken through the decoder
and the steps of the unmodified pipeline. The one or two factors on the sampling are moved a little
up and down instead. A shift changes the schedule, which no graph holds; and a model sees its
guidance through sines of up to a thousand times its value, whose derivative says nothing of what a
step of useful length does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibri.arrays import Scores, Vector
from calibri.coefficients import FACTOR_BOUNDS, Factor, SearchSpace
from calibri.errors import ConfigError, RewardError
from calibri.pipelines import Site
from calibri.results import FULL
from calibri.runs.session import Session
from calibri.sampling import Noise
from calibri.scoring import Evaluator, decode

# How far a factor is moved to either side: about as far as one step of a search goes, which is what
# the difference has to be right about. It is measured with the same noise on both sides.
_FACTOR_STEP = 0.1


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
        float64 (n, ...), behind the first axis the shape of ``Coefficients.site_scales``; 0 for
        factors on the sampling.
    """
    # A factor of 0 is no sampling, and the scales do not depend on it.
    zero = np.array([float(name in space.factors) for name in space.labels])
    origin = space.coefficients(zero).site_scales(sites)
    moved = [space.coefficients(zero + unit).site_scales(sites) for unit in np.eye(space.size)]
    return np.stack(moved) - origin


def images_beside(session: Session) -> int:
    """Count what an update samples without gradient for each image with one.

    Both sides of every factor, and the original where a constraint compares with it.
    """
    return 2 * len(session.space.factors) + bool(session.mixture.constraints)


def check_gradient(session: Session, last_steps: int | None = None) -> None:
    """Refuse to search by gradients what has none, before any work.

    Raises:
        ConfigError: the objective or the search space has no gradient, or there are fewer steps.
        UnsupportedModelError: the pipeline cannot be run with gradients.
    """
    session.bench.sampler.check_gradient(last_steps)
    _check_objective(session)
    if session.config.search.fidelity != FULL:
        raise ConfigError(
            f"Gradients are taken through images as in sampling; search.fidelity asks for "
            f"{session.config.search.fidelity.label}. Leave it out, or use the black-box search."
        )
    _check_members(session.space)


def _check_members(space: SearchSpace) -> None:
    """Only two directions tell members that start alike apart: with the reward and against it."""
    branches = space.branches or ()
    further = len(branches) - len(set(branches))
    if further > 1 or (further and not space.search_output):
        raise ConfigError(
            "By gradients an ensemble has one further member, whose output weight is searched: "
            "of several that start alike the gradients stay alike. Set space.members to 2 and "
            "space.output_weights to true, or use the black-box search."
        )


def _check_objective(session: Session) -> None:
    mixture, measures = session.mixture, session.bench.measures
    if mixture.method == "rank":
        raise ConfigError(
            "The mixing 'rank' has no gradient: ranks change in steps. Set rewards.mixing to "
            "zscore or min, or use the black-box search."
        )
    lacking = [name for name in mixture.names if not measures.has_gradient(name)]
    if lacking:
        raise ConfigError(
            f"Reward '{lacking[0]}' has no gradient: it does not score float images. Choose one "
            "that `calibri rewards list` shows as differentiable, or use the black-box search."
        )


class Gradients:
    """Gradients of rewards with respect to the flat vector, kept in the journal unit by unit.

    Args:
        session: its objective is differentiated.
        evaluator: has units computed and keeps what comes of it.
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
        slopes = {name: _mean(self._jacobian, name, records) for name in names}
        failed = np.isnan(next(iter(slopes.values())).scores)
        self._evaluator.dropped += int(failed.sum())
        for factor in self._session.space.factors:
            for name, difference in self._differences(factor, step, vector, noises).items():
                slopes[name].gradient[self._session.space.labels.index(factor)] = difference
        return slopes

    def _differences(
        self, factor: Factor, step: int, vector: Vector, noises: Sequence[Noise]
    ) -> dict[str, float]:
        """Central differences of the mean of every reward, one-sided at a bound of the factor."""
        space = self._session.space
        place = space.labels.index(factor)
        sides = np.stack([vector, vector])
        reach = vector[place] + np.array([-_FACTOR_STEP, _FACTOR_STEP])
        sides[:, place] = np.clip(reach, *FACTOR_BOUNDS[factor])
        candidates = [space.coefficients(side) for side in sides]
        tables = self._evaluator.score(factor, step, candidates, noises, self._session.objective)
        width = sides[1, place] - sides[0, place]
        return {
            name: float(np.diff(np.nanmean(table, axis=1))[0] / width)
            for name, table in tables.items()
        }


def mean_slope(session: Session, name: str, records: Sequence[Mapping[str, Any]]) -> Slope:
    """Average gradients with respect to scales, as gradients with respect to the flat vector.

    Args:
        session: has the space.
        name: of a reward.
        records: results of units, see ``Evaluator.differentiate``.

    Raises:
        RewardError: all images were dropped.
    """
    return _mean(jacobian(session.space, session.bench.scaler.sites), name, records)


def _mean(jacobian: NDArray[np.float64], name: str, records: Sequence[Mapping[str, Any]]) -> Slope:
    scores = np.concatenate([decode(record["scores"][name]) for record in records])
    count = int(np.isfinite(scores).sum())
    if not count:
        raise RewardError(
            f"Each of the {len(scores)} images of an update was dropped: the score of '{name}' or "
            "its gradient was not finite. Check the reward and the pipeline."
        )
    table = np.sum([np.array(record["gradients"][name]) for record in records], axis=0)
    axes = list(range(table.ndim))
    total = np.tensordot(jacobian, table, axes=([axis + 1 for axis in axes], axes))
    return Slope(scores, np.asarray(total) / count)
