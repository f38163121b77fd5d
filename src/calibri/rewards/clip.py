"""Rewards from the embeddings of a CLIP: one model, one preprocessing, texts embedded once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

from calibri.rewards.empty_weights import no_init_weights
from calibri.rewards.images import FLOOR, Offset, clip_pixels
from calibri.rewards.pretrained import load_tokenizer
from calibri.rewards.reward import DifferentiableModelReward, PromptCache
from calibri.rewards.weights import Checkpoint, load_strict, read_tensors

WEIGHTS_FILE = "model.safetensors"

CLIP_L14 = Checkpoint("openai/clip-vit-large-patch14")
CLIP_B32 = Checkpoint("openai/clip-vit-base-patch32")


def both_towers(text: CLIPTextConfig, vision: CLIPVisionConfig, width: int) -> CLIPConfig:
    """Sizes of a CLIP; transformers 4 takes those of its towers as mappings only."""
    return CLIPConfig(
        text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=width
    )


def vit_b32() -> CLIPConfig:
    """OpenAI's ViT-B/32: 151 million parameters, QuickGELU."""
    return both_towers(CLIPTextConfig(), CLIPVisionConfig(), 512)


def vit_l14() -> CLIPConfig:
    """OpenAI's ViT-L/14: 428 million parameters, QuickGELU."""
    text = CLIPTextConfig(
        hidden_size=768, intermediate_size=3072, num_attention_heads=12, projection_dim=768
    )
    return both_towers(text, vision_l14(224), 768)


def vision_l14(image_size: int) -> CLIPVisionConfig:
    """Image tower of OpenAI's ViT-L/14 at 224 or 336 pixels."""
    return CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        patch_size=14,
        image_size=image_size,
        projection_dim=768,
    )


def vit_h14() -> CLIPConfig:
    """LAION's ViT-H/14: 986 million parameters, and the exact GELU, unlike OpenAI's."""
    text = CLIPTextConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        projection_dim=1024,
        hidden_act="gelu",
    )
    vision = CLIPVisionConfig(
        hidden_size=1280,
        intermediate_size=5120,
        num_hidden_layers=32,
        num_attention_heads=16,
        patch_size=14,
        projection_dim=1024,
        hidden_act="gelu",
    )
    return both_towers(text, vision, 1024)


def without_positions(key: str) -> str | None:
    """Leave out the position counters that checkpoints of older libraries carry."""
    return None if key.endswith(".position_ids") else key


def load_clip(config: CLIPConfig, checkpoint: Checkpoint) -> nn.Module:
    """Load a CLIP saved by transformers.

    Raises:
        RewardError: the weights cannot be had or do not fit.
    """
    tensors = read_tensors(checkpoint.file(WEIGHTS_FILE))
    with no_init_weights():
        model: nn.Module = CLIPModel(config)
    load_strict(model, tensors, without_positions)
    return model


def embed_images(model: Any, pixels: Tensor) -> Tensor:
    """Unit image embeddings of float (N, 3, S, S): float32 (N, D)."""
    return _unit(model.get_image_features(pixels))


def _unit(features: Any) -> Tensor:
    # transformers 5 returns a tower's whole output, whose pooler_output is the projected embedding;
    # transformers 4 returns the embedding.
    embedding = features if isinstance(features, Tensor) else features.pooler_output
    return functional.normalize(embedding.float(), dim=-1)


def embed_texts(model: Any, tokenizer: Any, texts: Sequence[str], device: torch.device) -> Tensor:
    """Unit text embeddings: float32 (N, D); texts are cut at the model's 77 tokens."""
    tokens = tokenizer(
        list(texts),
        padding=True,
        truncation=True,
        max_length=model.config.text_config.max_position_embeddings,
        return_tensors="pt",
    ).to(device)
    return _unit(model.get_text_features(tokens["input_ids"], tokens["attention_mask"]))


class ClipReward(DifferentiableModelReward):
    """A reward from the cosine of CLIP's image and text embeddings.

    Texts are embedded once: a search scores the same prompts for all candidates of a generation.

    A subclass may set where its tokenizer is published, if not with its weights, and how it crops.

    Args:
        checkpoint: weights, and the tokenizer where it is a folder.
        config: makes the architecture.
        device: where the network runs.
        dtype: of its weights.
        batch_size: images per forward.
    """

    published_tokenizer: ClassVar[Checkpoint | None] = None
    offset: ClassVar[Offset] = FLOOR

    def __init__(
        self,
        checkpoint: Checkpoint,
        config: Callable[[], CLIPConfig],
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        batch_size: int = 32,
    ) -> None:
        super().__init__(device=device, dtype=dtype, batch_size=batch_size)
        self.checkpoint = checkpoint
        self.config = config()
        self._tokenizer: Any = None
        self._embeddings = PromptCache(self._embed_text)

    def load(self) -> nn.Module:
        """Build the network and read its weights.

        Raises:
            RewardError: the weights cannot be had or do not fit.
        """
        return load_clip(self.config, self.checkpoint)

    def pixels(self, images: Tensor) -> Tensor:
        """Preprocess bytes, (N, 3, H, W), to the network's float (N, 3, S, S)."""
        return clip_pixels(images, self.config.vision_config.image_size, type(self).offset)

    def image_embeddings(self, images: Tensor) -> Tensor:
        """Unit embeddings of bytes, (N, 3, H, W): float32 (N, D)."""
        return embed_images(self.model, self.pixels(images).to(self.device, self.dtype))

    def text_embeddings(self, texts: Sequence[str]) -> Tensor:
        """Unit embeddings of N texts: float32 (N, D)."""
        return self._embeddings(texts).to(self.device)

    def _embed_text(self, text: str) -> Tensor:
        if self._tokenizer is None:
            separate = None if self.checkpoint.folder else type(self).published_tokenizer
            self._tokenizer = load_tokenizer(separate or self.checkpoint)
        return embed_texts(self.model, self._tokenizer, [text], self.device)[0]

    def cosines(self, images: Tensor, texts: Sequence[str]) -> Tensor:
        """Cosine of each image with its text: float32 (N,)."""
        return (self.image_embeddings(images) * self.text_embeddings(texts)).sum(-1)
