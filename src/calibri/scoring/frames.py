"""Videos for rewards that look at images: their frames are scored one by one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def mean_over_frames(
    measure: Callable[[Tensor, Sequence[str]], Tensor],
) -> Callable[[Tensor, Sequence[str]], Tensor]:
    """Make a measure of images one of videos: its mean over the frames.

    A measure that compares images of a prompt compares frames of the same moment, so that motion
    within one video does not count as diversity among several. A frame without a finite score
    leaves its video without one.

    Args:
        measure: from uint8 (N, 3, H, W) and N prompts to one row of numbers per image.

    Returns:
        The same measure for images, and for videos of uint8 (N, frames, 3, H, W).
    """

    def measured(images: Tensor, prompts: Sequence[str]) -> Tensor:
        if images.ndim == 4:
            return measure(images, prompts)
        return torch.stack([measure(frame, prompts) for frame in images.unbind(1)]).mean(dim=0)

    return measured
