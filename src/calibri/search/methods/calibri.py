"""The default: CMA-ES, of which the average of its last means is returned (docs/search.md)."""

from __future__ import annotations

from collections.abc import Sequence

from numpy.typing import ArrayLike

from calibri.arrays import Vector
from calibri.search.averaging import tail_mean
from calibri.search.cma import CMASearch
from calibri.search.method import MethodInfo, Setup


class TailAveraged(CMASearch):
    """CMA-ES that returns the mean of the last part of its means."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self._means: list[Vector] = []

    def tell(self, candidates: Sequence[Vector], scores: ArrayLike, /) -> None:
        """Update the distribution, and keep its mean."""
        super().tell(candidates, scores)
        self._means.append(self.mean)

    def result(self) -> Vector:
        """Average of the last means, float64 (n,)."""
        return tail_mean(self._means or [self.mean], self._setup.tail)


INFO = MethodInfo("calibri", TailAveraged, measures_first=True)
