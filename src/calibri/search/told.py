"""Scores as a method may be told them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from calibri.arrays import Scores, Vector


def checked_scores(candidates: Sequence[Vector], scores: ArrayLike, popsize: int) -> Scores:
    """Scores as float64 (popsize,).

    Raises:
        ValueError: a score is not finite, or there is not one score for each candidate.
    """
    told: Scores = np.asarray(scores, dtype=np.float64)
    if len(candidates) != popsize or told.shape != (popsize,):
        raise ValueError(
            f"Expected {popsize} candidates and scores, got {len(candidates)} and {len(told)}."
        )
    if not np.isfinite(told).all():
        raise ValueError(f"Scores must be finite, got {told.tolist()}.")
    return told
