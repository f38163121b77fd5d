"""Qwen-Image."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import torch
from packaging.version import Version

from calibri.pipelines.families.family import (
    APART,
    AuthorsVector,
    Family,
    Forward,
    Guidance,
    SiteGroup,
)
from calibri.pipelines.families.notation import ATTN, IMG_MLP
from calibri.pipelines.families.timesteps import SHARE
from calibri.pipelines.geometries import Component, Geometry, paper_defaults

_QWEN25_VL_7B = Component(
    "transformers",
    "Qwen2_5_VLForConditionalGeneration",
    {
        "text_config": {
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "vocab_size": 152064,
        },
        "vision_config": {
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "out_hidden_size": 3584,
        },
    },
)
_QWEN_IMAGE = Geometry(
    components={
        "transformer": Component(
            "diffusers",
            "QwenImageTransformer2DModel",
            {
                "patch_size": 2,
                "in_channels": 64,
                "out_channels": 16,
                "num_layers": 60,
                "attention_head_dim": 128,
                "num_attention_heads": 24,
                "joint_attention_dim": 3584,
            },
        ),
        "text_encoder": _QWEN25_VL_7B,
        "vae": Component("diffusers", "AutoencoderKLQwenImage", {}),
    },
    dtype="bfloat16",
    defaults=paper_defaults("gate", "separate", true_cfg_scale=4.0),
    generations=960,
)


def _inputs(config: Any, height: int, width: int, tokens: int) -> dict[str, Any]:
    rows, columns = height // 2, width // 2
    # diffusers before 0.37 does not take the length of the text from the text itself.
    older = Version(version("diffusers")) < Version("0.37.0.dev0")
    return {
        **({"txt_seq_lens": [tokens]} if older else {}),
        "hidden_states": torch.empty(1, rows * columns, config.in_channels),
        "encoder_hidden_states": torch.empty(1, tokens, config.joint_attention_dim),
        "timestep": torch.empty(1),
        "img_shapes": [[(1, rows, columns)]],
    }


FAMILIES = (
    Family(
        classes=("QwenImageTransformer2DModel",),
        blocks={"QwenImageTransformerBlock": (ATTN, IMG_MLP)},
        timesteps=SHARE,
        guidance=Guidance(APART),
        authors=AuthorsVector(
            groups={"gate": (SiteGroup(),)}, guidance_scale=4.0, ineffective="mlp"
        ),
        # A prompt of about 20 tokens, behind a template of 34.
        forward=Forward(
            _inputs, "true_cfg_scale", {"text_encoder": 54}, 20, decoded=lambda h, w: (1, h, w)
        ),
        published={"qwen-image": _QWEN_IMAGE},
    ),
    Family(
        classes=("QwenImage21Transformer2DModel",),
        blocks={
            "QwenImage21TransformerBlock": (
                "attn: attn@j -> attn.to_out.0",
                "mlp: img_mlp@j -> img_mlp.out",
            )
        },
        timesteps=SHARE,
        guidance=Guidance(APART),
    ),
)
