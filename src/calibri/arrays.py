"""Names for the kinds of arrays that are passed around."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
"""Numbers that a search moves: float64 (n,)."""

Scores = NDArray[np.float64]
"""Scores of any shape, for example (candidates, prompts); NaN for a failed image."""

Pixels = NDArray[np.uint8]
"""Images, uint8 (N, 3, H, W), or of videos (N, frames, 3, H, W)."""
