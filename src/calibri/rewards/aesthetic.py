"""LAION's aesthetic predictor: a linear judge on unit CLIP image embeddings; ignores the prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from transformers import CLIPConfig

from calibri.rewards.clip import CLIP_L14, WEIGHTS_FILE, embed_images, load_clip, vit_l14
from calibri.rewards.images import ROUND, clip_pixels
from calibri.rewards.reward import DifferentiableModelReward, RewardInfo
from calibri.rewards.weights import Checkpoint, load_strict, read_tensors

DEFAULT = Checkpoint(
    "ttj/sac-logos-ava1-l14-linearMSE", revision="1e77fa05081323d99725fc40a9bf9f88180490e7"
)


def score_head(width: int) -> nn.Sequential:
    """Five linear layers without activations, numbered around the dropouts of the original."""
    sizes = ((width, 1024), (1024, 128), (128, 64), (64, 16), (16, 1))
    first, second, third, fourth, last = (nn.Linear(n, m) for n, m in sizes)
    dropout = nn.Identity  # dropouts do nothing when scoring, but count in the keys
    return nn.Sequential(first, dropout(), second, dropout(), third, dropout(), fourth, last)


class _Aesthetic(nn.Module):
    def __init__(self, clip: nn.Module, width: int) -> None:
        super().__init__()
        self.clip = clip
        self.layers = score_head(width)


class Aesthetic(DifferentiableModelReward):
    """LAION's aesthetic score "sac+logos+ava1-l14-linearMSE", about 1 to 10.

    Args:
        checkpoint: of the predictor.
        clip: of the CLIP ViT-L/14 whose embeddings it reads.
        config: makes the CLIP's architecture.
        **options: ``device``, ``dtype`` and ``batch_size``, as for every reward with a network.
    """

    def __init__(
        self,
        checkpoint: Checkpoint = DEFAULT,
        *,
        clip: Checkpoint = CLIP_L14,
        config: Callable[[], CLIPConfig] = vit_l14,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.checkpoint = checkpoint
        self.clip = clip
        self.config = config()
        self.info = RewardInfo(
            name="aesthetic",
            variant=f"{checkpoint} on {clip}, PIL bicubic 224 and centre crop, unit embeddings",
            unit="aesthetic score, about 1 to 10; ignores the prompt",
            differentiable=True,
            license="see its card",
        )

    def load(self) -> nn.Module:
        """Build the networks and read their weights.

        Raises:
            RewardError: the weights cannot be had or do not fit.
        """
        head = read_tensors(self.checkpoint.file(WEIGHTS_FILE))
        model = _Aesthetic(load_clip(self.config, self.clip), self.config.projection_dim)
        load_strict(model.layers, head, lambda key: key.removeprefix("layers."))
        return model

    def score_batch(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Score one batch: bytes, (N, 3, H, W), to float (N,)."""
        model: Any = self.model
        pixels = clip_pixels(images, self.config.vision_config.image_size, ROUND)
        # The predictor was trained on unit embeddings; others give 20 to 30.
        embeddings = embed_images(model.clip, pixels.to(self.device, self.dtype))
        scores: Tensor = model.layers(embeddings.to(self.dtype))
        return scores[:, 0]
