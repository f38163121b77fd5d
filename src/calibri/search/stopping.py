"""When a search has nothing left to gain (spec section 3)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# One-sided 95% quantile of the normal distribution.
_Z95 = 1.645


def reached_plateau(gains: Sequence[float], window: int) -> bool:
    """Say whether the reward no longer rises.

    Fits a line to the last ``window`` gains over the baseline (mean reward of a generation minus
    the baseline's on the same bucket, which removes easy and hard buckets) and asks whether its
    slope is significantly positive.

    Args:
        gains: one value per generation.
        window: generations to look at, at least 4.

    Returns:
        False while there are fewer than ``window`` generations.
    """
    if len(gains) < window:
        return False
    y = np.asarray(gains[-window:])
    x = np.arange(window) - (window - 1) / 2
    slope = (x @ y) / (x @ x)
    residual = y - y.mean() - slope * x
    error = np.sqrt(residual @ residual / (window - 2) / (x @ x))
    return bool(slope <= _Z95 * error)
