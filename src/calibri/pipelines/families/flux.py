"""FLUX.1, FLUX.2 and FLUX.3."""

from __future__ import annotations

from typing import Any

import torch

from calibri.pipelines.families.family import (
    APART,
    EMBEDDED_OR_APART,
    AuthorsVector,
    Family,
    Forward,
    Guidance,
    SiteGroup,
)
from calibri.pipelines.families.notation import ATTN, DOUBLE, SINGLE
from calibri.pipelines.families.timesteps import SHARE
from calibri.pipelines.geometries import (
    T5_XXL,
    VAE,
    Component,
    Geometry,
    clip_text_model,
    paper_defaults,
)

_FLUX_DEV = Geometry(
    components={
        "transformer": Component(
            "diffusers",
            "FluxTransformer2DModel",
            {
                "patch_size": 1,
                "in_channels": 64,
                "num_layers": 19,
                "num_single_layers": 38,
                "attention_head_dim": 128,
                "num_attention_heads": 24,
                "joint_attention_dim": 4096,
                "pooled_projection_dim": 768,
                "guidance_embeds": True,
            },
        ),
        "text_encoder": clip_text_model(768, 12, 12),
        "text_encoder_2": T5_XXL,
        "vae": VAE,
    },
    dtype="bfloat16",
    defaults=paper_defaults("block", guidance_scale=3.5),
    published_hours={"block": 32.0},
)


def _inputs(config: Any, height: int, width: int, tokens: int) -> dict[str, Any]:
    image = height * width // 4  # the pipeline packs 2 x 2 latents into a token
    return {
        "hidden_states": torch.empty(1, image, config.in_channels),
        "encoder_hidden_states": torch.empty(1, tokens, config.joint_attention_dim),
        "pooled_projections": torch.empty(1, config.pooled_projection_dim),
        "timestep": torch.empty(1),
        "guidance": torch.empty(1) if config.guidance_embeds else None,
        "img_ids": torch.empty(image, 3),
        "txt_ids": torch.empty(tokens, 3),
    }


_SINGLES = SiteGroup("single_transformer_blocks")

FAMILIES = (
    Family(
        classes=("FluxTransformer2DModel",),
        blocks={"FluxTransformerBlock": DOUBLE, "FluxSingleTransformerBlock": SINGLE},
        timesteps=SHARE,
        guidance=Guidance(EMBEDDED_OR_APART),
        authors=AuthorsVector(
            groups={
                "gate": (SiteGroup(stream="visual"), SiteGroup(stream="text"), _SINGLES),
                "layer": (SiteGroup(), _SINGLES),
                "block": (SiteGroup(), _SINGLES),
            },
            guidance_scale=3.5,
            embedded=True,
        ),
        forward=Forward(
            _inputs,
            "true_cfg_scale",
            {"text_encoder": 77, "text_encoder_2": 512},
            512,
            cut="text_encoder_2",
        ),
        published={"flux.1-dev": _FLUX_DEV},
    ),
    Family(
        classes=("Flux2Transformer2DModel",),
        blocks={
            "Flux2TransformerBlock": (
                ATTN,
                "mlp: ff@v -> ff.linear_out, ff_context@t -> ff_context.linear_out",
            ),
            "Flux2SingleTransformerBlock": ("attn+mlp: attn@j -> attn.to_out",),
        },
        timesteps=SHARE,
        guidance=Guidance("embedded"),
    ),
    Family(
        classes=("Flux3Transformer2DModel",),
        blocks={
            # One class for images and for text, told apart by their list.
            "Flux3ModeTransformerBlock": (
                "attn: attn@v -> attn.to_out.0",
                "mlp: ff@v -> ff.linear_out",
            ),
            "Flux3SingleTransformerBlock": (
                "attn: attn@j -> attn.to_out.0",
                "mlp: ff@j -> ff.linear_out",
            ),
        },
        text_containers=frozenset({"txt_mode_blocks"}),
        timesteps=SHARE,
        guidance=Guidance(APART),
        one_prompt=True,
    ),
)
