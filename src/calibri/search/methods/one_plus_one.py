"""A baseline: one parent and one child at a time, the (1+1)-ES with the 1/5 success rule."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from calibri.arrays import Vector
from calibri.search.method import MethodInfo, Setup
from calibri.search.told import checked_scores
from calibri.seeds import derive_seed

_SUCCESSES = 1 / 5
# Parent, child, and the original beside them.
_IMAGES_PER_UPDATE = 3


class OnePlusOne:
    """Keep the better of a parent and a normal draw around it.

    Both are scored on each new bucket: a score of another one says nothing about this one. A child
    that is better makes the next steps longer, one that is not makes them shorter, so that about
    every fifth succeeds (Hansen, Arnold and Auger 2015, *Evolution Strategies*, algorithm 3).

    Args:
        setup: start, basis, bounds, seed and the first step size.
    """

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._number = 0
        self._parent: Vector = np.asarray(setup.start, dtype=np.float64)
        self._sigma = setup.sigma0

    @property
    def mean(self) -> Vector:
        """The parent, float64 (n,)."""
        return self._parent

    @property
    def sigma(self) -> float:
        """Step size, in units of the basis."""
        return self._sigma

    def ask(self) -> list[Vector]:
        """Give the parent and its child; asking twice gives the same ones."""
        setup = self._setup
        rng = np.random.default_rng(derive_seed(setup.seed, "search", self._number))
        step = setup.basis @ rng.standard_normal(len(self._parent))
        child = np.clip(self._parent + self._sigma * step, *setup.bounds.T)
        return [self._parent, child]

    def tell(self, candidates: Sequence[Vector], scores: ArrayLike, /) -> None:
        """Keep the better one; of equals the child.

        Raises:
            ValueError: a score is not finite, or there are not two candidates and scores.
        """
        parent, child = checked_scores(candidates, scores, 2)
        if child >= parent:
            self._parent = np.asarray(candidates[1], dtype=np.float64)
        damping = math.sqrt(len(self._parent) + 1)
        self._sigma *= math.exp((float(child >= parent) - _SUCCESSES) / damping)
        self._number += 1

    def result(self) -> Vector:
        """The parent, float64 (n,)."""
        return self._parent


def _updates(images: int, bucket_size: int, beside: int) -> int:
    """Updates that cost about what the candidates of a generation cost."""
    return max(1, images // (_IMAGES_PER_UPDATE * bucket_size))


INFO = MethodInfo("one_plus_one", OnePlusOne, updates=_updates, defaults={"race_keep": 1.0})
