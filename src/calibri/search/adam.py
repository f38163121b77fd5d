"""Adam (Kingma and Ba 2015, arXiv 1412.6980, algorithm 1) over a vector; numpy only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from calibri.arrays import Vector
from calibri.search.method import Setup

_BETA_2, _EPSILON = 0.999, 1e-8
# Share of the typical length of a gradient that is kept from update to update.
_REMEMBERED = 0.9


class AdamSearch:
    """Maximise a noisy function of a vector by its gradients, which are averaged.

    Gradients of single images have lengths that are spread over orders of magnitude, so a few would
    decide where an update goes. ``clipped`` shortens each to the typical length, the median, before
    they are averaged, as is best under heavy tails (Zhang et al. 2020, arXiv 1912.03194);
    docs/gradient.md has what that gains.

    It has no random state, so telling stored gradients again replays a search bit for bit.

    Args:
        setup: start, basis, bounds and the learning rate, which is the size of the first step along
            every column of the basis, and about the largest of all.
        momentum: share of the direction that is kept from update to update.
        clipped: no gradient counts as longer than the typical one.
    """

    def __init__(self, setup: Setup, *, momentum: float = 0.9, clipped: bool = False) -> None:
        self._setup = setup
        self._momentum = momentum
        self._clips = clipped
        self._first = np.zeros_like(setup.start)
        self._second = np.zeros_like(setup.start)
        self._typical = 0.0
        self.mean: Vector = np.asarray(setup.start, dtype=np.float64)
        self.generation = 0

    @property
    def sigma(self) -> float:
        """Size of a step, in units of the basis."""
        return self._setup.learning_rate

    def ask(self) -> list[Vector]:
        """Where gradients are wanted: at ``mean`` alone."""
        return [self.mean]

    def tell(self, candidates: Sequence[Vector], gradients: NDArray[np.float64], /) -> None:
        """Move along the gradients of images at ``mean``, float64 (images, n).

        Raises:
            ValueError: an entry is not finite, or there is not one candidate and a gradient of n
                numbers for each of one or more images.
        """
        self._check(candidates, gradients)
        self.generation += 1
        basis = self._setup.basis
        rows = gradients @ basis
        inner = (self._clipped(rows) if self._clips else rows).mean(axis=0)
        self._first = self._momentum * self._first + (1 - self._momentum) * inner
        self._second = _BETA_2 * self._second + (1 - _BETA_2) * inner**2
        first = self._first / (1 - self._momentum**self.generation)
        second = self._second / (1 - _BETA_2**self.generation)
        step = self._setup.learning_rate * first / (np.sqrt(second) + _EPSILON)
        self.mean = np.clip(self.mean + basis @ step, *self._setup.bounds.T)

    def _check(self, candidates: Sequence[Vector], gradients: NDArray[np.float64]) -> None:
        shape = np.shape(gradients)
        if len(candidates) != 1 or len(shape) != 2 or not shape[0] or shape[1] != len(self.mean):
            raise ValueError(
                f"Expected one candidate and gradients of {len(self.mean)} numbers, got "
                f"{len(candidates)} and gradients of shape {shape}."
            )
        if not np.isfinite(gradients).all():
            raise ValueError(f"Gradients must be finite, got {gradients}.")

    def _clipped(self, inner: NDArray[np.float64]) -> NDArray[np.float64]:
        """Shorten gradients that are longer than the typical one, (images, n)."""
        lengths = np.linalg.norm(inner, axis=1)
        # An image that shows nothing of what is rewarded has no gradient at all.
        some = lengths[lengths > 0]
        if not len(some):
            return inner
        seen = float(np.median(some))
        # A geometric mean, so that a long gradient that is alone in its bucket changes it little.
        self._typical = (self._typical or seen) ** _REMEMBERED * seen ** (1 - _REMEMBERED)
        shares = np.minimum(1.0, self._typical / np.maximum(lengths, np.finfo(float).tiny))
        return np.asarray(inner * shares[:, None])
