"""Adam (Kingma and Ba 2015, arXiv 1412.6980, algorithm 1) over a vector; numpy only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from calibri.arrays import Vector

_BETA_1, _BETA_2, _EPSILON = 0.9, 0.999, 1e-8


class AdamSearch:
    """Maximise a noisy function of a vector by its gradients.

    It has no random state, so telling stored gradients again replays a search bit for bit.

    Args:
        start: first vector, float64 (n,).
        basis: columns are the steps in which Adam moves, float64 (n, n); the identity moves every
            entry by itself.
        bounds: lowest and highest value of each entry, float64 (n, 2).
        learning_rate: size of the first step along every column, and about the largest of all.
    """

    def __init__(
        self,
        start: Vector,
        *,
        basis: NDArray[np.float64],
        bounds: NDArray[np.float64],
        learning_rate: float,
    ) -> None:
        self._basis = basis
        self._bounds = bounds
        self._rate = learning_rate
        self._first = np.zeros_like(start)
        self._second = np.zeros_like(start)
        self.mean: Vector = np.asarray(start, dtype=np.float64)
        self.generation = 0

    @property
    def sigma(self) -> float:
        """Size of a step, in units of ``basis``."""
        return self._rate

    def tell(self, gradient: Vector) -> None:
        """Move along a gradient at ``mean``, float64 (n,).

        Raises:
            ValueError: an entry is not finite.
        """
        if not np.isfinite(gradient).all():
            raise ValueError(f"Gradients must be finite, got {gradient}.")
        self.generation += 1
        inner = self._basis.T @ gradient
        self._first = _BETA_1 * self._first + (1 - _BETA_1) * inner
        self._second = _BETA_2 * self._second + (1 - _BETA_2) * inner**2
        first = self._first / (1 - _BETA_1**self.generation)
        second = self._second / (1 - _BETA_2**self.generation)
        step = self._rate * first / (np.sqrt(second) + _EPSILON)
        self.mean = np.clip(self.mean + self._basis @ step, *self._bounds.T)
