"""Tiny randomly initialised models of real classes, and configurations of real models."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel
from torch import nn

# From the published config.json of each model.
FLUX_DEV: dict[str, Any] = dict(
    patch_size=1,
    in_channels=64,
    num_layers=19,
    num_single_layers=38,
    attention_head_dim=128,
    num_attention_heads=24,
    joint_attention_dim=4096,
    pooled_projection_dim=768,
    guidance_embeds=True,
)
SD35_MEDIUM: dict[str, Any] = dict(
    sample_size=128,
    patch_size=2,
    in_channels=16,
    num_layers=24,
    attention_head_dim=64,
    num_attention_heads=24,
    joint_attention_dim=4096,
    caption_projection_dim=1536,
    pooled_projection_dim=2048,
    out_channels=16,
    pos_embed_max_size=384,
    dual_attention_layers=tuple(range(13)),
    qk_norm="rms_norm",
)


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Replace zero and one initialised parameters too, so that every branch has an influence."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2 + 0.02)
    return model.eval()


def tiny_sd3(dual: tuple[int, ...] = (0,)) -> nn.Module:
    return randomise(
        SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=3,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=16,
            caption_projection_dim=16,
            pooled_projection_dim=12,
            pos_embed_max_size=8,
            dual_attention_layers=dual,
            qk_norm="rms_norm",
        )
    )


def sd3_inputs(rows: int = 2, seed: int = 1) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return dict(
        hidden_states=torch.randn(rows, 4, 8, 8, generator=generator),
        encoder_hidden_states=torch.randn(rows, 5, 16, generator=generator),
        pooled_projections=torch.randn(rows, 12, generator=generator),
        timestep=torch.full((rows,), 500.0),
    )


def tiny_flux() -> nn.Module:
    return randomise(
        FluxTransformer2DModel(
            patch_size=1,
            in_channels=4,
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=16,
            pooled_projection_dim=12,
            guidance_embeds=True,
            axes_dims_rope=(2, 2, 4),
        )
    )


def flux_inputs(rows: int = 2, seed: int = 1) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return dict(
        hidden_states=torch.randn(rows, 9, 4, generator=generator),
        encoder_hidden_states=torch.randn(rows, 5, 16, generator=generator),
        pooled_projections=torch.randn(rows, 12, generator=generator),
        timestep=torch.full((rows,), 0.5),
        guidance=torch.full((rows,), 3.5),
        img_ids=torch.zeros(9, 3),
        txt_ids=torch.zeros(5, 3),
    )


def forward(model: nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs, return_dict=False)[0]
