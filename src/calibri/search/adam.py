"""Adam (Kingma and Ba 2015, arXiv 1412.6980, algorithm 1) over a vector; numpy only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from calibri.arrays import Vector
from calibri.search.method import Setup

_BETA_1, _BETA_2, _EPSILON = 0.9, 0.999, 1e-8


class AdamSearch:
    """Maximise a noisy function of a vector by its gradients.

    It has no random state, so telling stored gradients again replays a search bit for bit.

    Args:
        setup: start, basis, bounds and the learning rate, which is the size of the first step along
            every column of the basis, and about the largest of all.
    """

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._first = np.zeros_like(setup.start)
        self._second = np.zeros_like(setup.start)
        self.mean: Vector = np.asarray(setup.start, dtype=np.float64)
        self.generation = 0

    @property
    def sigma(self) -> float:
        """Size of a step, in units of the basis."""
        return self._setup.learning_rate

    def ask(self) -> list[Vector]:
        """Where the gradient is wanted: at ``mean`` alone."""
        return [self.mean]

    def tell(self, candidates: Sequence[Vector], gradients: NDArray[np.float64], /) -> None:
        """Move along the gradient at ``mean``, float64 (1, n).

        Raises:
            ValueError: an entry is not finite, or there is not one gradient of n numbers.
        """
        if len(candidates) != 1 or np.shape(gradients) != (1, len(self.mean)):
            raise ValueError(
                f"Expected one candidate and its gradient of {len(self.mean)} numbers, got "
                f"{len(candidates)} and gradients of shape {np.shape(gradients)}."
            )
        if not np.isfinite(gradients).all():
            raise ValueError(f"Gradients must be finite, got {gradients[0]}.")
        self.generation += 1
        basis = self._setup.basis
        inner = basis.T @ gradients[0]
        self._first = _BETA_1 * self._first + (1 - _BETA_1) * inner
        self._second = _BETA_2 * self._second + (1 - _BETA_2) * inner**2
        first = self._first / (1 - _BETA_1**self.generation)
        second = self._second / (1 - _BETA_2**self.generation)
        step = self._setup.learning_rate * first / (np.sqrt(second) + _EPSILON)
        self.mean = np.clip(self.mean + basis @ step, *self._setup.bounds.T)
