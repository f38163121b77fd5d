"""A baseline: candidates around the start that nothing is learned from (docs/search.md)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from calibri.arrays import Vector
from calibri.search.method import MethodInfo, Setup
from calibri.search.told import checked_scores
from calibri.seeds import derive_seed


class RandomSearch:
    """Draw every generation from the same normal distribution around the start.

    Args:
        setup: start, basis, bounds, seed, candidates per generation and the step size.
    """

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._generation = 0
        self._best = self.mean

    @property
    def mean(self) -> Vector:
        """The start, float64 (n,)."""
        return np.asarray(self._setup.start, dtype=np.float64)

    @property
    def sigma(self) -> float:
        """Step size, in units of the basis; it never changes."""
        return self._setup.sigma0

    def ask(self) -> list[Vector]:
        """Draw the candidates of the current generation; asking twice gives the same ones."""
        setup = self._setup
        rng = np.random.default_rng(derive_seed(setup.seed, "search", self._generation))
        steps = setup.sigma0 * rng.standard_normal((setup.popsize, len(setup.start)))
        return list(np.clip(setup.start + steps @ setup.basis.T, *setup.bounds.T))

    def tell(self, candidates: Sequence[Vector], scores: ArrayLike, /) -> None:
        """Keep the best candidate of this generation.

        Raises:
            ValueError: a score is not finite, or there is not one score for each candidate.
        """
        told = checked_scores(candidates, scores, self._setup.popsize)
        self._best = candidates[int(np.argmax(told))]
        self._generation += 1

    def result(self) -> Vector:
        """Best candidate of the last generation; the validation chooses among generations."""
        return self._best


INFO = MethodInfo("random", RandomSearch)
