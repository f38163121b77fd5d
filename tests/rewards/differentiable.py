"""What every reward with a gradient must hold; the tests of each reward call it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from calibri.rewards import resizing
from calibri.rewards import reward as reward_module
from calibri.rewards.reward import DifferentiableReward
from tests.rewards.tiny_models import pictures

# Square, wide and tall, larger and smaller than what the tiny networks see.
SIZES = ((16, 16), (50, 50), (20, 44), (45, 21), (9, 12))
STEP = 2.0**-11


def check_differentiable(reward: DifferentiableReward, prompts: Sequence[str]) -> None:
    """Check values and gradients of ``score_float`` at several sizes of images."""
    assert isinstance(reward, DifferentiableReward)
    assert reward.info.differentiable
    for seed, (height, width) in enumerate(SIZES):
        # Neither dark nor bright, so that nothing is cut while it is moved.
        images = pictures(len(prompts), height, width, seed) // 2 + 64
        _check_values(reward, images, prompts)
        _check_gradient(reward, images.float() / 255, prompts)


def _check_values(reward: DifferentiableReward, images: Tensor, prompts: Sequence[str]) -> None:
    scores = reward.score(images, prompts)
    pixels = (images.float() / 255).requires_grad_()
    found = reward.score_float(pixels, prompts)
    assert found.requires_grad
    assert torch.equal(found.detach(), scores), f"{found.tolist()} and {scores.tolist()}"
    # What lies between bytes is scored as the nearest ones.
    between = (torch.rand(images.shape, generator=torch.Generator().manual_seed(0)) - 0.5) * 0.9
    near = reward.score_float((images + between) / 255, prompts)
    assert torch.equal(near, scores)


def _check_gradient(reward: DifferentiableReward, pixels: Tensor, prompts: Sequence[str]) -> None:
    gradient = _gradient(lambda x: reward.score_float(x, prompts), pixels)
    cut = reward.score_float(pixels, prompts) == reward.info.range[0]  # a cosine below 0
    assert torch.equal(gradient.flatten(1).any(1), ~cut)
    assert not cut.all()
    with pytest.MonkeyPatch.context() as patch:
        # Without rounding the score is smooth, and its gradient can be measured.
        for module in (resizing, reward_module):
            patch.setattr(module, "rounded", lambda values: values)

        def mean(x: Tensor) -> Tensor:
            return reward.score_float(x, prompts).double()

        smooth = _gradient(mean, pixels)
        for direction in (smooth, _signs(pixels)):
            direction = direction / direction.abs().max()
            with torch.no_grad():
                moved = mean(pixels + STEP * direction) - mean(pixels - STEP * direction)
            slope = float(moved.sum()) / (2 * STEP)
            scale = float(smooth.norm() * direction.norm())
            assert abs(slope - float((smooth * direction).sum())) < 0.05 * scale
    cosine = torch.nn.functional.cosine_similarity(gradient.flatten(), smooth.flatten(), dim=0)
    assert cosine > 0.9


def _gradient(score: Callable[[Tensor], Tensor], pixels: Tensor) -> Tensor:
    leaf = pixels.detach().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(score(leaf).sum(), leaf)
    return gradient


def _signs(pixels: Tensor) -> Tensor:
    return torch.randn(pixels.shape, generator=torch.Generator().manual_seed(1)).sign()
