"""A few frames of each video."""

from __future__ import annotations

import torch
from torch import Tensor


def evenly_spaced(videos: Tensor, count: int) -> Tensor:
    """Take frames at even distances, the first and the last among them.

    Args:
        videos: (N, frames, 3, H, W).
        count: frames to take; all where there are fewer, the middle one for 1.

    Returns:
        (N, min(count, frames), 3, H, W).
    """
    last = videos.shape[1] - 1
    if count == 1:
        return videos[:, [last // 2]]
    return videos[:, torch.linspace(0, last, min(count, last + 1)).round().long()]
