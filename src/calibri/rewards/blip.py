"""BLIP's towers on transformers' classes, and the way from the original checkpoints to them."""

from __future__ import annotations

import re

from transformers import BlipTextConfig, BlipVisionConfig

# BLIP's layers divide the width of 768 among 12 heads; transformers' default of 8 is another model.
TEXT_HEADS = 12

_STEMS = (
    (re.compile(r"^cls_token$"), "embeddings.class_embedding"),
    (re.compile(r"^pos_embed$"), "embeddings.position_embedding"),
    (re.compile(r"^patch_embed\.proj\."), "embeddings.patch_embedding."),
    (re.compile(r"^norm\."), "post_layernorm."),
    (re.compile(r"^blocks\.(\d+)\.attn\.qkv\."), r"encoder.layers.\1.self_attn.qkv."),
    (re.compile(r"^blocks\.(\d+)\.attn\.proj\."), r"encoder.layers.\1.self_attn.projection."),
    (re.compile(r"^blocks\.(\d+)\.norm([12])\."), r"encoder.layers.\1.layer_norm\2."),
    (re.compile(r"^blocks\.(\d+)\.mlp\."), r"encoder.layers.\1.mlp."),
)
_VISION = "visual_encoder."


def vision_large() -> BlipVisionConfig:
    """ViT-L/16 at 224 pixels, ImageReward's."""
    return BlipVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=224,
        layer_norm_eps=1e-6,
    )


def vision_base(image_size: int = 480) -> BlipVisionConfig:
    """ViT-B/16, BLIP-VQA's."""
    return BlipVisionConfig(image_size=image_size, layer_norm_eps=1e-6)


def text_base(encoder_hidden_size: int) -> BlipTextConfig:
    """BERT-base with cross-attention to an image (or question) of the given width."""
    return BlipTextConfig(num_attention_heads=TEXT_HEADS, encoder_hidden_size=encoder_hidden_size)


def from_original(key: str) -> str | None:
    """Rename a key of the original BLIP to that of transformers; None leaves it out.

    The text towers kept their names; position counters are no weights.
    """
    if key.endswith(".position_ids"):
        return None
    if not key.startswith(_VISION):
        return key
    stem = key.removeprefix(_VISION)
    for pattern, name in _STEMS:
        renamed, found = pattern.subn(name, stem)
        if found:
            return f"vision_model.{renamed}"
    return key
