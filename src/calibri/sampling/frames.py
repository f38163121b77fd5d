"""Videos for rewards that look at images: a few frames of each, scored one by one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

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


def film_strip(images: Tensor) -> Tensor:
    """Put the frames of each video side by side, to look at.

    Args:
        images: (N, frames, 3, H, W), or images (N, 3, H, W), which stay as they are.

    Returns:
        (N, 3, H, frames * W).
    """
    return images if images.ndim == 4 else images.permute(0, 2, 3, 1, 4).flatten(3)
