"""The paper's loop: CMA-ES, of which the best sampled candidate is returned (spec section 3)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from calibri.arrays import Vector
from calibri.search.cma import CMASearch
from calibri.search.method import MethodInfo, Setup
from calibri.search.popsize import default_popsize


class BestSampled(CMASearch):
    """CMA-ES that returns the best candidate of its last generation."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self._best = self.mean

    def tell(self, candidates: Sequence[Vector], scores: ArrayLike, /) -> None:
        """Update the distribution, and keep the best candidate."""
        super().tell(candidates, scores)
        self._best = candidates[int(np.argmax(scores))]

    def result(self) -> Vector:
        """Best candidate of the last generation, float64 (n,).

        Scores of different buckets do not compare; the validation chooses among generations.
        """
        return self._best


INFO = MethodInfo(
    "reference",
    BestSampled,
    popsize=default_popsize,
    defaults={
        "bucket_size": 16,
        "bucket_growth": 1.0,
        "race_keep": 1.0,
        "sigma0": 0.25,
        "validate_every": 10,
    },
    plain_basis=True,
    papers_space=True,
)
