"""Tiny models and pipelines of real classes, tiny runs, and configurations of real models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
)
from torch import nn

from calibri.artifact.calibration import Calibration, Sampling
from calibri.coefficients.coefficients import Coefficients
from calibri.coefficients.space import SearchSpace
from calibri.config import RunConfig, load_config
from calibri.pipelines.sites.find import find_sites

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


# A run of a second or two on one core, of the shipped pipeline.
TINY_RUN: dict[str, Any] = {
    "device": "cpu",
    "sampling.num_inference_steps": 2,
    "sampling.workers": 1,
    "space.granularity": "block",
    "rewards.held_out": (),
    "search.popsize": 4,
    "search.num_validation_prompts": 5,
    "evaluation.num_prompts": 4,
    "evaluation.step_multiples": (1,),
    "evaluation.num_samples": 0,
}


# Mixtures are scaled on all training prompts, up to 128, which takes most of a tiny run.
FEW_PROMPTS: dict[str, Any] = {
    "prompts.train": str(Path(__file__).with_name("few-prompts.txt")),
    "prompts.held_out": "shapes",
}


def dotted(values: dict[str, Any]) -> dict[str, Any]:
    """Keys of a configuration from keywords, which have ``__`` for the dot."""
    return {name.replace("__", "."): value for name, value in values.items()}


def tiny_run(base: dict[str, Any] | None = None, **values: Any) -> RunConfig:
    """The configuration TINY_RUN with changes: by dotted keys, and by keywords."""
    return load_config(values=TINY_RUN | (base or {}) | dotted(values))


def has_hooks(model: nn.Module) -> bool:
    """Whether anything is called before or after a module of a model; torch has no face for it."""
    return any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


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


def tiny_flux(in_channels: int = 4) -> nn.Module:
    return randomise(
        FluxTransformer2DModel(
            patch_size=1,
            in_channels=in_channels,
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


def flux_pipeline() -> FluxPipeline:
    """A pipeline that is called with embeddings and gives latents."""
    nothing = ("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
    pipe = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        transformer=tiny_flux(in_channels=16),
        **dict.fromkeys(nothing),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def calibration_of(
    model: nn.Module, coefficients: Coefficients, base_model: str = "shapes", **sampling: Any
) -> Calibration:
    """A calibration of a transformer, with settings of its sampling: 3 steps, no guidance."""
    settings: dict[str, Any] = {"num_inference_steps": 3, "guidance_scale": 1.0} | sampling
    return Calibration(
        calibri_version="0",
        transformer_class=type(model).__name__,
        base_model=base_model,
        coefficients=coefficients,
        sampling=Sampling(dtype="float32", **settings),
        rewards={"shapes": "test"},
        objective="shapes",
        provenance={},
    )


def scaled_calibration(
    pipe: Any,
    *,
    guidance_scale: float = 1.0,
    branches: Literal["shared", "separate"] = "shared",
    outputs: Sequence[float] = (),
) -> Calibration:
    """A calibration by gates of a pipeline, the first ten of which, or all, are far from 1."""
    sites = find_sites(pipe.transformer)
    space = SearchSpace.build(sites, "gate", guidance_scale=guidance_scale, branches=branches)
    vector = space.start.copy()
    first = [1.3, 0.7, 1.2, 0.8, 1.1, 0.9, 1.4, 0.6, 1.25, 0.75][: len(sites)]
    vector[: len(first)] = first
    vector[len(vector) - len(outputs) :] = outputs
    return calibration_of(
        pipe.transformer, space.coefficients(vector), guidance_scale=guidance_scale
    )


def forward(model: nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs, return_dict=False)[0]
