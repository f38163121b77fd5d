"""What to return of a search whose mean moves by noise."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from calibri.arrays import Vector


def tail_mean(means: Sequence[Vector], fraction: float) -> Vector:
    """Average the last ``fraction`` of the means of a search, at least one.

    The mean of the distribution moves by noise from generation to generation; its average over the
    tail is a better estimate of the optimum than any one of them or any sampled candidate.
    """
    count = max(1, math.ceil(fraction * len(means)))
    return np.asarray(np.mean(means[-count:], axis=0))
