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
    """A reward of images and how it changes with the vector.

    Attributes:
        scores: float64 (noises,), NaN where an image was dropped.
        gradients: of the score of each image, float64 (noises, n), NaN where it was dropped.
    """

    scores: Scores
    gradients: NDArray[np.float64]

    @property
    def gradient(self) -> Vector:
        """Gradient of the mean score of the images that were not dropped, float64 (n,)."""
        return np.asarray(np.nanmean(self.gradients, axis=0))


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
        """Differentiate every reward of the objective.

        Args:
            phase: part of the run, for the journal.
            step: number within the phase.
            vector: where, float64 (n,).
            noises: (prompt, seed) pairs, an image of each.

        Raises:
            RewardError: a score or a gradient is not finite, and the policy is not to drop the
                image or nothing would be left.
            RunError: one image alone does not fit into memory.
        """
        names = self._session.objective
        space = self._session.space
        found = self._evaluator.differentiate(
            phase, step, space.coefficients(vector), noises, names, self._last_steps
        )
        slopes = {name: Slope(s, self._flat(name, s, table)) for name, (s, table) in found.items()}
        failed = np.isnan(next(iter(slopes.values())).scores)
        self._evaluator.dropped += int(failed.sum())
        for factor in space.factors:
            for name, difference in self._differences(factor, step, vector, noises).items():
                slopes[name].gradients[:, space.labels.index(factor)] = difference
        return slopes

    def _differences(
        self, factor: Factor, step: int, vector: Vector, noises: Sequence[Noise]
    ) -> dict[str, Scores]:
        """Central differences of every reward, one-sided at a bound of the factor, (noises,)."""
        space = self._session.space
        place = space.labels.index(factor)
        sides = np.stack([vector, vector])
        reach = vector[place] + np.array([-_FACTOR_STEP, _FACTOR_STEP])
        sides[:, place] = np.clip(reach, *FACTOR_BOUNDS[factor])
        candidates = [space.coefficients(side) for side in sides]
        tables = self._evaluator.score(factor, step, candidates, noises, self._session.objective)
        width = sides[1, place] - sides[0, place]
        return {name: np.diff(table, axis=0)[0] / width for name, table in tables.items()}

    def _flat(self, name: str, scores: Scores, tables: NDArray[np.float64]) -> NDArray[np.float64]:
        """From the scales of the sites to the flat vector, image by image."""
        _check_some(name, scores)
        gradients = _to_vector(self._jacobian, tables)
        gradients[np.isnan(scores)] = np.nan
        return gradients


def mean_gradient(
    session: Session, name: str, records: Sequence[Mapping[str, Any]]
) -> tuple[Scores, Vector]:
    """Average policy gradients, as gradients with respect to the flat vector.

    Args:
        session: has the space.
        name: of a reward.
        records: results of units, see ``Evaluator.explore``.

    Returns:
        Scores, float64 (images,), NaN where one was dropped, and the mean of the others' gradients,
        float64 (n,).

    Raises:
        RewardError: all images were dropped.
    """
    scores = np.concatenate([decode(record["scores"][name]) for record in records])
    _check_some(name, scores)
    table = np.sum([np.array(record["gradients"][name]) for record in records], axis=0)
    slopes = jacobian(session.space, session.bench.scaler.sites)
    return scores, _to_vector(slopes, table[None])[0] / int(np.isfinite(scores).sum())


def _check_some(name: str, scores: Scores) -> None:
    if np.isnan(scores).all():
        raise RewardError(
            f"Each of the {len(scores)} images of an update was dropped: the score of '{name}' or "
            "its gradient was not finite. Check the reward and the pipeline."
        )


def _to_vector(jacobian: NDArray[np.float64], tables: NDArray[np.float64]) -> NDArray[np.float64]:
    """From scales of sites, (images, ...), to the flat vector, (images, n)."""
    axes = list(range(1, tables.ndim))
    return np.asarray(np.tensordot(tables, jacobian, axes=(axes, axes)))
