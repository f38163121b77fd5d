"""Three scores that are all called CLIPScore; their names say which is which."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from transformers import CLIPConfig

from calibri.rewards.clip import CLIP_B32, CLIP_L14, ClipReward, vit_b32, vit_l14
from calibri.rewards.images import ROUND
from calibri.rewards.reward import RewardInfo
from calibri.rewards.weights import Checkpoint

# The original prefixes every caption (Hessel et al., 2021, section 3).
PREFIX = "A photo depicts "


class ClipScore(ClipReward):
    """``clip_l14``: 100 max(cos, 0) of CLIP ViT-L/14, as torchmetrics computes it by default.

    Args:
        checkpoint: weights, and the tokenizer where it is a folder.
        config: makes the architecture.
        **options: ``device``, ``dtype`` and ``batch_size``, as for every reward with a network.
    """

    def __init__(
        self,
        checkpoint: Checkpoint = CLIP_L14,
        *,
        config: Callable[[], CLIPConfig] = vit_l14,
        **options: Any,
    ) -> None:
        super().__init__(checkpoint, config, **options)
        self.info = RewardInfo(
            name="clipscore",
            variant=f"clip_l14, {checkpoint}, PIL bicubic 224 and centre crop, 77 tokens",
            range=(0.0, 100.0),
            unit="100 max(cos, 0)",
            differentiable=True,
            license="see its card",
        )

    def score_batch(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Score one batch: bytes, (N, 3, H, W), and N prompts to float (N,)."""
        return 100 * self.cosines(images, prompts).clamp(min=0)


class OriginalClipScore(ClipReward):
    """``clip_b32_w2.5``: 2.5 max(cos, 0) of ViT-B/32 on "A photo depicts {prompt}" (the paper's).

    Args:
        checkpoint: weights, and the tokenizer where it is a folder.
        config: makes the architecture.
        **options: ``device``, ``dtype`` and ``batch_size``, as for every reward with a network.
    """

    offset = ROUND

    def __init__(
        self,
        checkpoint: Checkpoint = CLIP_B32,
        *,
        config: Callable[[], CLIPConfig] = vit_b32,
        **options: Any,
    ) -> None:
        super().__init__(checkpoint, config, **options)
        self.info = RewardInfo(
            name="clipscore-original",
            variant=f"clip_b32_w2.5, {checkpoint}, PIL bicubic 224 and centre crop, 77 tokens",
            range=(0.0, 2.5),
            unit="2.5 max(cos, 0)",
            differentiable=True,
            license="see its card",
        )

    def score_batch(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Score one batch: bytes, (N, 3, H, W), and N prompts to float (N,)."""
        texts = [PREFIX + prompt for prompt in prompts]
        return 2.5 * self.cosines(images, texts).clamp(min=0)


class CompBenchClip(ClipReward):
    """``clip_b32_cos``: the plain cosine of ViT-B/32, T2I-CompBench's score of non-spatial prompts.

    Args:
        checkpoint: weights, and the tokenizer where it is a folder.
        config: makes the architecture.
        **options: ``device``, ``dtype`` and ``batch_size``, as for every reward with a network.
    """

    offset = ROUND

    def __init__(
        self,
        checkpoint: Checkpoint = CLIP_B32,
        *,
        config: Callable[[], CLIPConfig] = vit_b32,
        **options: Any,
    ) -> None:
        super().__init__(checkpoint, config, **options)
        self.info = RewardInfo(
            name="compbench-clip",
            variant=f"clip_b32_cos, {checkpoint}, PIL bicubic 224 and centre crop, 77 tokens",
            range=(-1.0, 1.0),
            unit="cosine",
            differentiable=True,
            license="see its card",
        )

    def score_batch(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Score one batch: bytes, (N, 3, H, W), and N prompts to float (N,)."""
        return self.cosines(images, prompts)
