"""CMA-ES (Hansen 2016, arXiv 1604.00772) behind ask and tell; numpy only.

Higher scores are better here; the library minimises, so signs flip at this border and nowhere else.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from cmaes import CMA
from numpy.typing import NDArray

from calibri.seeds import derive_seed

Vector = NDArray[np.float64]


def default_popsize(dimension: int) -> int:
    """Population of the paper: 4 + floor(3 ln n) (spec section 3)."""
    return 4 + math.floor(3 * math.log(dimension))


class CMASearch:
    """Maximise a noisy function of a vector.

    The random state of a generation depends on (seed, generation) alone, so telling stored scores
    again replays a search bit for bit.

    Args:
        start: first mean, float64 (n,).
        basis: columns are the steps along which the first distribution is isotropic, float64
            (n, n), invertible; the identity searches the vector as it is.
        bounds: lowest and highest value of each coordinate, float64 (n, 2).
        sigma0: first step size, in units of ``basis``.
        popsize: candidates per generation.
        seed: run seed.
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
        self._start = start
        self._basis = basis
        self._bounds = bounds
        self._seed = seed
        # The library's covariance is isotropic at first, so it searches basis^-1 (x - start).
        self._cma = CMA(
            mean=np.zeros_like(start),
            sigma=sigma0,
            bounds=_inner_bounds(start, basis, bounds),
            population_size=popsize,
            seed=0,
        )

    @property
    def popsize(self) -> int:
        """Candidates per generation."""
        return int(self._cma.population_size)

    @property
    def generation(self) -> int:
        """Generations told so far."""
        return int(self._cma.generation)

    @property
    def mean(self) -> Vector:
        """Mean of the distribution, float64 (n,)."""
        return self._outer(self._cma.mean)

    @property
    def sigma(self) -> float:
        """Step size, in units of ``basis``."""
        return float(self._cma._sigma)

    def ask(self) -> list[Vector]:
        """Draw the candidates of the current generation; asking twice gives the same ones."""
        # numpy's RandomState takes 32 bits.
        self._cma.reseed_rng(derive_seed(self._seed, "search", self.generation) % 2**32)
        return [self._outer(self._cma.ask()) for _ in range(self.popsize)]

    def tell(self, candidates: Sequence[Vector], scores: Sequence[float]) -> None:
        """Update the distribution with the score of every candidate; higher is better.

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
        offsets = np.asarray(candidates) - self._start
        inner = np.linalg.solve(self._basis, offsets.T).T
        self._cma.tell([(x, -float(score)) for x, score in zip(inner, scores, strict=True)])

    def _outer(self, inner: Vector) -> Vector:
        x = np.clip(self._start + self._basis @ inner, *self._bounds.T)
        return np.asarray(x, dtype=np.float64)


def _inner_bounds(
    start: Vector, basis: NDArray[np.float64], bounds: NDArray[np.float64]
) -> NDArray[np.float64]:
    # A coordinate that is a step of its own keeps its bounds; mixed ones are clipped outside.
    scale = np.diag(basis)
    alone = (np.count_nonzero(basis, axis=0) == 1) & (np.count_nonzero(basis, axis=1) == 1)
    inner = (bounds - start[:, None]) / np.where(alone, scale, 1.0)[:, None]
    return np.where(alone[:, None], inner, [-np.inf, np.inf])


def tail_mean(means: Sequence[Vector], fraction: float) -> Vector:
    """Average the last ``fraction`` of the means of a search, at least one.

    The mean of the distribution moves by noise from generation to generation; its average over the
    tail is a better estimate of the optimum than any one of them or any sampled candidate.
    """
    count = max(1, math.ceil(fraction * len(means)))
    return np.asarray(np.mean(means[-count:], axis=0))
