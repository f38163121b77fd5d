"""Scores of images, and the direction in which the pixels of each should change."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from calibri.rewards import BatchedReward
from calibri.scoring.measures import Grouped, Measure, Measures

# Scores (N,) and their gradients, (N, ...).
Differentiated = tuple[Tensor, Tensor]


def directions(
    measures: Measures, name: str, pixels: Tensor, texts: Sequence[str]
) -> Differentiated:
    """Score images and differentiate each score with respect to the pixels.

    The network of a reward keeps what its backward needs for as many images as it takes at once.

    Args:
        measures: of a run.
        name: of a differentiable one.
        pixels: float (N, 3, H, W) in [0, 1], of videos (N, frames, 3, H, W).
        texts: their prompts.

    Returns:
        Scores, float32 (N,), and gradients in the shape of the pixels.
    """
    measure, reward, size = measures.differentiable(name), measures.rewards.get(name), len(texts)
    if isinstance(reward, BatchedReward) and not isinstance(measure, Grouped):
        size = reward.batch_size
    return joined(
        [
            _with_gradient(measure, pixels[first : first + size], texts[first : first + size])
            for first in range(0, len(texts), size)
        ]
    )


def joined(parts: Sequence[Differentiated]) -> Differentiated:
    """Put batches together, in their order."""
    scores, gradients = zip(*parts, strict=True)
    return torch.cat(scores), torch.cat(gradients)


def _with_gradient(measure: Measure, pixels: Tensor, texts: Sequence[str]) -> Differentiated:
    leaf = pixels.detach().requires_grad_()
    scores = measure(leaf, texts)
    (direction,) = torch.autograd.grad(scores.sum(), leaf)
    return scores.detach().float(), direction
