"""Adam along the gradient of the reward; the average of its last means is returned."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from calibri.arrays import Vector
from calibri.search.adam import AdamSearch
from calibri.search.averaging import tail_mean
from calibri.search.method import MethodInfo, Setup

# What an image with its gradient costs in images without: one forward, and a backward of about two.
_IMAGES_PER_GRADIENT = 3


class TailAveragedAdam(AdamSearch):
    """Adam that returns the mean of the last part of its means."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self._means: list[Vector] = []

    def tell(self, candidates: Sequence[Vector], gradients: NDArray[np.float64], /) -> None:
        """Move along the gradient, and keep where it led."""
        super().tell(candidates, gradients)
        self._means.append(self.mean)

    def result(self) -> Vector:
        """Average of the last means, float64 (n,)."""
        return tail_mean(self._means or [self.mean], self._setup.tail)


def _updates(images: int, bucket_size: int, beside: int) -> int:
    """Updates that cost about what the candidates of a generation cost."""
    return max(1, images // (bucket_size * (_IMAGES_PER_GRADIENT + beside)))


INFO = MethodInfo("gradient", TailAveragedAdam, updates=_updates, uses_gradients=True)
