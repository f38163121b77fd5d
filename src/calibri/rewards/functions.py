"""A plain function as a reward."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from calibri.rewards.reward import BatchedReward, RewardInfo


def scores_itself(target: object) -> bool:
    """Whether something is a function of ``(images, prompts)``, not one that makes a reward."""
    if isinstance(target, type) or not callable(target):
        return False
    try:
        names = list(inspect.signature(target).parameters)
    except (TypeError, ValueError):  # a callable that does not say what it takes
        return False
    return names[:2] == ["images", "prompts"]


class FunctionReward(BatchedReward):
    """What a function gives for each image.

    Args:
        function: from images, uint8 (N, 3, H, W), and N prompts to N numbers, a tensor or a list.
        batch_size: images per call.
    """

    def __init__(
        self, function: Callable[[Tensor, Sequence[str]], Any], *, batch_size: int = 256
    ) -> None:
        super().__init__(batch_size)
        self.function = function
        name = getattr(function, "__name__", type(function).__name__)
        described = (inspect.getdoc(function) or "").split("\n")[0].rstrip(".")
        self.info = RewardInfo(
            name, variant=f"function {name}", unit=described or f"what {name} gives"
        )

    def score_batch(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Score one batch: uint8 (N, 3, H, W) and N prompts to (N,)."""
        return torch.as_tensor(self.function(images, prompts))
