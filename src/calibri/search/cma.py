"""CMA-ES behind ask and tell: start, basis, bounds and seeds around its distribution.

Higher scores are better, here and everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from calibri.arrays import Vector
from calibri.config import SearchConfig
from calibri.search.distribution import Distribution
from calibri.seeds import derive_seed


def default_popsize(dimension: int) -> int:
    """Population of the paper: 4 + floor(3 ln n) (spec section 3)."""
    return 4 + math.floor(3 * math.log(dimension))


def large_popsize(dimension: int) -> int:
    """Population that pays under noise: about 8 sqrt(n), a multiple of 8 (docs/search.md).

    Averaging over many candidates filters the noise of the reward better than more prompts do for
    each of a few (Arnold and Beyer 2002 call it genetic repair).
    """
    return max(8, 8 * round(math.sqrt(dimension)))


class CMASearch:
    """Maximise a noisy function of a vector.

    The candidates of a generation depend on (seed, generation) and the scores told before alone,
    so telling stored scores again replays a search bit for bit.

    Args:
        start: first mean, float64 (n,).
        basis: columns are the steps along which the first distribution is isotropic, float64
            (n, n), invertible; the identity searches the vector as it is.
        bounds: lowest and highest value of each coordinate, float64 (n, 2); candidates beyond
            them are clipped.
        sigma0: first step size, in units of ``basis``.
        popsize: candidates per generation, at least 4.
        seed: run seed.

    Raises:
        ValueError: fewer than 4 candidates.
    """

    def __init__(
        self,
        start: Vector,
        *,
        basis: NDArray[np.float64],
        bounds: NDArray[np.float64],
        sigma0: float,
        popsize: int,
        seed: int,
    ) -> None:
        if popsize < 4:
            raise ValueError(f"A population needs at least 4 candidates, got {popsize}.")
        self._start = start
        self._basis = basis
        self._inverse = np.linalg.inv(basis)
        self._bounds = bounds
        self._seed = seed
        self._popsize = popsize
        # Isotropic at first, so it searches basis^-1 (x - start).
        self._distribution = Distribution(len(start), sigma0)

    @property
    def popsize(self) -> int:
        """Candidates per generation."""
        return self._popsize

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
        """Step size, in units of ``basis``."""
        return self._distribution.sigma

    def ask(self) -> list[Vector]:
        """Draw the candidates of the current generation; asking twice gives the same ones."""
        rng = np.random.default_rng(derive_seed(self._seed, "search", self.generation))
        normals = rng.standard_normal((self._popsize, len(self._start)))
        return list(self._outer(self._distribution.sample(normals)))

    def tell(self, candidates: Sequence[Vector], scores: Sequence[float]) -> None:
        """Update the distribution with the score of every candidate; higher is better.

        Only the order of the scores counts; equal ones keep the order of the candidates.

        Raises:
            ValueError: a score is not finite, or there is not one score for each candidate.
        """
        if len(candidates) != self.popsize or len(scores) != self.popsize:
            raise ValueError(
                f"Expected {self.popsize} candidates and scores, got {len(candidates)} and "
                f"{len(scores)}."
            )
        if not np.isfinite(scores).all():
            raise ValueError(f"Scores must be finite, got {list(scores)}.")
        order = np.argsort(-np.asarray(scores, dtype=np.float64), kind="stable")
        offsets = np.asarray(candidates)[order] - self._start
        self._distribution.update(offsets @ self._inverse.T)

    def _outer(self, inner: Vector) -> Vector:
        x = np.clip(self._start + inner @ self._basis.T, *self._bounds.T)
        return np.asarray(x, dtype=np.float64)


def tail_mean(means: Sequence[Vector], fraction: float) -> Vector:
    """Average the last ``fraction`` of the means of a search, at least one.

    The mean of the distribution moves by noise from generation to generation; its average over the
    tail is a better estimate of the optimum than any one of them or any sampled candidate.
    """
    count = max(1, math.ceil(fraction * len(means)))
    return np.asarray(np.mean(means[-count:], axis=0))


def popsize_for(config: SearchConfig, dimension: int) -> int:
    """Candidates per generation of a search of this many numbers."""
    rule = default_popsize if config.method == "reference" else large_popsize
    return config.popsize or rule(dimension)
