"""CMA-ES behind ask and tell: start, basis, bounds and seeds around its distribution.

Higher scores are better, here and everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calibri.arrays import Scores, Vector
from calibri.search.bounds import BoundPenalty
from calibri.search.distribution import Distribution, Rates
from calibri.search.method import Setup
from calibri.search.told import checked_scores
from calibri.seeds import derive_seed


class CMASearch:
    """Maximise a noisy function of a vector.

    The candidates of a generation depend on (seed, generation) and the scores told before alone,
    so telling stored scores again replays a search bit for bit.

    Args:
        setup: start, basis, bounds, seed, first step size and at least 4 candidates. The first
            distribution is isotropic along the columns of the basis.

    Raises:
        ValueError: fewer than 4 candidates.
    """

    def __init__(self, setup: Setup) -> None:
        if setup.popsize < 4:
            raise ValueError(f"A population needs at least 4 candidates, got {setup.popsize}.")
        self._setup = setup
        self._inverse = np.linalg.inv(setup.basis)
        # Isotropic at first, so it searches basis^-1 (x - start).
        self._distribution = Distribution(len(setup.start), setup.sigma0)
        self._bounds = BoundPenalty(setup.bounds, np.linalg.norm(setup.basis, axis=1))

    @property
    def generation(self) -> int:
        """Generations told so far."""
        return self._distribution.generation

    @property
    def mean(self) -> Vector:
        """Mean of the distribution, or the nearest point within the bounds, float64 (n,)."""
        return self._bounds.clipped(self._outer(self._distribution.mean))

    @property
    def sigma(self) -> float:
        """Step size, in units of the basis."""
        return self._distribution.sigma

    @property
    def covariance(self) -> NDArray[np.float64]:
        """Shape of the distribution, float64 (n, n), in units of the basis and of ``sigma``."""
        return self._distribution.covariance

    def ask(self) -> list[Vector]:
        """Draw the candidates of the current generation; asking twice gives the same ones."""
        return list(self._bounds.clipped(self._draws()))

    def tell(self, candidates: Sequence[Vector], scores: ArrayLike, /) -> None:
        """Update the distribution with the score of every candidate; higher is better.

        Only the order of the scores counts while no candidate was drawn beyond the bounds; equal
        ones keep the order of the candidates.

        Raises:
            ValueError: a score is not finite, or there is not one score for each candidate.
        """
        told = checked_scores(candidates, scores, self._setup.popsize)
        points, draws = np.asarray(candidates, dtype=np.float64), self._draws()
        beyond = draws - self._bounds.clipped(draws)
        if beyond.any():
            points, told = self._as_drawn(points, draws, beyond, told)
        order = np.argsort(-told, kind="stable")
        self._distribution.update((points[order] - self._setup.start) @ self._inverse.T)
        if beyond.any():
            self._distribution.sigma *= self._bounds.shrinkage(self.sigma, self._deviations())

    def _as_drawn(
        self, candidates: Vector, draws: Vector, beyond: Vector, scores: Scores
    ) -> tuple[Vector, Scores]:
        """Give candidates back what clipping took from them, and let them pay for it."""
        mean, deviations = self._outer(self._distribution.mean), self._deviations()
        # They may come in another order, or moved a little: each is the nearest that was asked.
        asked, told = (draws - beyond - mean) / deviations, (candidates - mean) / deviations
        nearest = np.argmin(np.square(asked).sum(axis=1) - 2 * told @ asked.T, axis=1)
        points = candidates + beyond[nearest]
        mu_eff = Rates.of(len(mean), len(scores)).mu_eff
        return points, self._bounds.penalised(points, scores, mean, deviations, mu_eff)

    def _draws(self) -> Vector:
        setup = self._setup
        rng = np.random.default_rng(derive_seed(setup.seed, "search", self.generation))
        normals = rng.standard_normal((setup.popsize, len(setup.start)))
        return self._outer(self._distribution.sample(normals))

    def _deviations(self) -> Vector:
        """Standard deviation of each coordinate, float64 (n,)."""
        basis, covariance = self._setup.basis, self._distribution.covariance
        variances = (basis @ covariance * basis).sum(axis=1)
        return np.asarray(self.sigma * np.sqrt(np.maximum(variances, np.finfo(float).tiny)))

    def _outer(self, inner: Vector) -> Vector:
        return np.asarray(self._setup.start + inner @ self._setup.basis.T, dtype=np.float64)
