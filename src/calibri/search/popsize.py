"""How many candidates a generation has, where none is configured."""

from __future__ import annotations

import math


def default_popsize(dimension: int) -> int:
    """Population of the paper: 4 + floor(3 ln n) (spec section 3)."""
    return 4 + math.floor(3 * math.log(dimension))


def large_popsize(dimension: int) -> int:
    """Population that pays under noise: about 8 sqrt(n), a multiple of 8 (docs/search.md).

    Averaging over many candidates filters the noise of the reward better than more prompts do for
    each of a few (Arnold and Beyer 2002 call it genetic repair).
    """
    return max(8, 8 * round(math.sqrt(dimension)))
