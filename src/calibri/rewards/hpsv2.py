"""HPS v2.1: human preference as the cosine of a tuned CLIP ViT-H/14 (Wu et al., 2023)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel

from calibri.rewards.clip import ClipReward, vit_h14
from calibri.rewards.empty_weights import no_init_weights
from calibri.rewards.images import letterbox_pixels
from calibri.rewards.pretrained import read_converted
from calibri.rewards.reward import RewardInfo
from calibri.rewards.weights import Checkpoint, load_strict

DEFAULT = Checkpoint("xswu/HPSv2")
TOKENIZER = Checkpoint("laion/CLIP-ViT-H-14-laion2B-s32B-b79K")
WEIGHTS_FILE = "HPS_v2.1_compressed.pt"

_NAMES = {
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
}
_STEMS = {
    "ln_final": "text_model.final_layer_norm",
    "visual.ln_pre": "vision_model.pre_layrnorm",
    "visual.ln_post": "vision_model.post_layernorm",
}
_BLOCK_STEMS = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_BLOCK = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)")
# open_clip multiplies by these from the right; a linear layer holds the transpose.
_PROJECTIONS = {
    "text_projection": "text_projection.weight",
    "visual.proj": "visual_projection.weight",
}


def from_open_clip(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename and split the tensors of an open_clip model to those of transformers' ``CLIPModel``.

    A key that open_clip does not have keeps its name, so that strict loading reports it.
    """
    return {name: value for key, tensor in tensors.items() for name, value in _map(key, tensor)}


def _map(key: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    block = _BLOCK.fullmatch(key)
    if block:
        tower = "vision_model" if block[1] else "text_model"
        yield from _map_block(f"{tower}.encoder.layers.{block[2]}", block[3], tensor)
    elif key in _PROJECTIONS:
        yield _PROJECTIONS[key], tensor.T.contiguous()
    else:
        stem, _, kind = key.rpartition(".")
        yield _NAMES.get(key, f"{_STEMS[stem]}.{kind}" if stem in _STEMS else key), tensor


def _map_block(layer: str, key: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    stem, _, kind = key.rpartition(".")
    if stem == "attn" and kind.startswith("in_proj_"):
        names = (f"{layer}.self_attn.{part}_proj.{kind.removeprefix('in_proj_')}" for part in "qkv")
        yield from zip(names, tensor.chunk(3), strict=True)
    else:
        yield f"{layer}.{_BLOCK_STEMS.get(stem, stem)}.{kind}", tensor


class HpsV21(ClipReward):
    """HPS v2.1 as a cosine, about 0.25 to 0.33; published tables show it times 100.

    Meaningful among images of one prompt; not comparable with v2.0.

    Args:
        checkpoint: weights (converted to safetensors), and the tokenizer where it is a folder.
        config: makes the architecture.
        **options: ``device``, ``dtype`` and ``batch_size``, as for every reward with a network.
    """

    published_tokenizer = TOKENIZER

    def __init__(
        self,
        checkpoint: Checkpoint = DEFAULT,
        *,
        config: Callable[[], CLIPConfig] = vit_h14,
        **options: Any,
    ) -> None:
        super().__init__(checkpoint, config, **options)
        self.info = RewardInfo(
            name="hpsv2.1",
            variant=f"{WEIGHTS_FILE} of {checkpoint}, long side to 224 (bicubic, antialiased) with "
            "black borders, 77 tokens",
            range=(-1.0, 1.0),
            unit="cosine",
            differentiable=True,
            license="see its card",
        )

    def load(self) -> nn.Module:
        """Build the network and read its weights.

        Raises:
            RewardError: the weights cannot be had or do not fit.
        """
        tensors = from_open_clip(read_converted(self.checkpoint, WEIGHTS_FILE))
        with no_init_weights():
            model: nn.Module = CLIPModel(self.config)
        load_strict(model, tensors, lambda key: key)
        return model

    def pixels(self, images: Tensor) -> Tensor:
        """Preprocess bytes, (N, 3, H, W), to the network's float (N, 3, S, S)."""
        return letterbox_pixels(images, self.config.vision_config.image_size)

    def score_batch(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Score one batch: bytes, (N, 3, H, W), and N prompts to float (N,)."""
        return self.cosines(images, prompts)
