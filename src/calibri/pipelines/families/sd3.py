"""Stable Diffusion 3 and 3.5."""

from __future__ import annotations

from typing import Any

import torch

from calibri.pipelines.families.family import (
    UNCONDITIONAL_FIRST,
    AuthorsVector,
    Family,
    Forward,
    Guidance,
    SiteGroup,
)
from calibri.pipelines.families.notation import ATTN, ATTN2, MLP
from calibri.pipelines.families.timesteps import COUNTED
from calibri.pipelines.geometries import (
    T5_XXL,
    VAE,
    Component,
    Geometry,
    clip_text_model,
    paper_defaults,
)

_SD35_MEDIUM = Geometry(
    components={
        "transformer": Component(
            "diffusers",
            "SD3Transformer2DModel",
            {
                "sample_size": 128,
                "patch_size": 2,
                "in_channels": 16,
                "out_channels": 16,
                "num_layers": 24,
                "attention_head_dim": 64,
                "num_attention_heads": 24,
                "joint_attention_dim": 4096,
                "caption_projection_dim": 1536,
                "pooled_projection_dim": 2048,
                "pos_embed_max_size": 384,
                "dual_attention_layers": list(range(13)),
                "qk_norm": "rms_norm",
            },
        ),
        "text_encoder": clip_text_model(768, 12, 12, "CLIPTextModelWithProjection"),
        "text_encoder_2": clip_text_model(1280, 32, 20, "CLIPTextModelWithProjection"),
        "text_encoder_3": T5_XXL,
        "vae": VAE,
    },
    dtype="bfloat16",
    defaults=paper_defaults("gate", "separate", guidance_scale=7.0),
    generations=2280,
)


def _inputs(config: Any, height: int, width: int, tokens: int) -> dict[str, Any]:
    return {
        "hidden_states": torch.empty(1, config.in_channels, height, width),
        "encoder_hidden_states": torch.empty(1, tokens, config.joint_attention_dim),
        "pooled_projections": torch.empty(1, config.pooled_projection_dim),
        "timestep": torch.empty(1),
    }


_MAIN = ("attn", "mlp")

FAMILIES = (
    Family(
        classes=("SD3Transformer2DModel",),
        blocks={
            # The second visual attention of SD3.5 is a layer of its own (61 in SD3.5-medium).
            "JointTransformerBlock": (ATTN, ATTN2, MLP),
            "SD3SingleTransformerBlock": (
                "attn: attn@v -> attn.to_out.0",
                "mlp: ff@v -> ff.net.2",
            ),
        },
        timesteps=COUNTED,
        guidance=Guidance(UNCONDITIONAL_FIRST),
        authors=AuthorsVector(
            groups={
                "gate": (
                    SiteGroup(stream="visual", layers=_MAIN),
                    SiteGroup(stream="text", layers=_MAIN),
                    SiteGroup(layers=("attn2",)),
                )
            },
            guidance_scale=7.0,
        ),
        forward=Forward(
            _inputs,
            "guidance_scale",
            {"text_encoder": 77, "text_encoder_2": 77, "text_encoder_3": 256},
            333,
            cut="text_encoder_3",
            default_size=None,
        ),
        published={"stable-diffusion-3.5-medium": _SD35_MEDIUM, "sd3.5-medium": _SD35_MEDIUM},
    ),
)
