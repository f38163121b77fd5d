"""CMA-ES behind ask and tell: start, basis, bounds and seeds around its distribution.

Higher scores are better, here and everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from calibri.arrays import Vector
from calibri.search.distribution import Distribution
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

    @property
    def generation(self) -> int:
        """Generations told so far."""
        return self._distribution.generation

    @property
    def mean(self) -> Vector:
        """Mean of the distribution, float64 (n,)."""
        return self._outer(self._distribution.mean)

    @property
    def sigma(self) -> float:
        """Step size, in units of the basis."""
        return self._distribution.sigma

    def ask(self) -> list[Vector]:
        """Draw the candidates of the current generation; asking twice gives the same ones."""
        setup = self._setup
        rng = np.random.default_rng(derive_seed(setup.seed, "search", self.generation))
        normals = rng.standard_normal((setup.popsize, len(setup.start)))
        return list(self._outer(self._distribution.sample(normals)))

    def tell(self, candidates: Sequence[Vector], scores: ArrayLike, /) -> None:
        """Update the distribution with the score of every candidate; higher is better.

        Only the order of the scores counts; equal ones keep the order of the candidates.

        Raises:
            ValueError: a score is not finite, or there is not one score for each candidate.
        """
        told = checked_scores(candidates, scores, self._setup.popsize)
        order = np.argsort(-told, kind="stable")
        offsets = np.asarray(candidates)[order] - self._setup.start
        self._distribution.update(offsets @ self._inverse.T)

    def _outer(self, inner: Vector) -> Vector:
        setup = self._setup
        x = np.clip(setup.start + inner @ setup.basis.T, *setup.bounds.T)
        return np.asarray(x, dtype=np.float64)
