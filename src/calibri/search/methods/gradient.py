"""Adam along clipped gradients of the reward; the average of its last means is returned."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from calibri.arrays import Vector
from calibri.search.adam import AdamSearch
from calibri.search.averaging import tail_mean
from calibri.search.method import IMAGES_PER_GRADIENT, MethodInfo, Setup


class TailAveragedAdam(AdamSearch):
    """Adam that returns the mean of the last part of its means."""

    def __init__(self, setup: Setup, *, momentum: float = 0.9, clipped: bool = False) -> None:
        super().__init__(setup, momentum=momentum, clipped=clipped)
        self._means: list[Vector] = []

    def tell(self, candidates: Sequence[Vector], gradients: NDArray[np.float64], /) -> None:
        """Move along the gradients, and keep where they led."""
        super().tell(candidates, gradients)
        self._means.append(self.mean)

    def result(self) -> Vector:
        """Average of the last means, float64 (n,)."""
        return tail_mean(self._means or [self.mean], self._setup.tail)


def _make(setup: Setup) -> TailAveragedAdam:
    return TailAveragedAdam(setup, momentum=0.5, clipped=True)  # docs/gradient.md


def _updates(images: int, bucket_size: int, beside: int) -> int:
    """Updates that cost about what the candidates of a generation cost."""
    return max(1, images // (bucket_size * (IMAGES_PER_GRADIENT + beside)))


INFO = MethodInfo(
    "gradient",
    _make,
    updates=_updates,
    # Many small steps first: a step needs a direction, not a figure.
    defaults={"bucket_size": 4, "bucket_growth": 4.0},
    uses_gradients=True,
)
