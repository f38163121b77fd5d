"""The pipelines that take pictures and are run, each around tiny models of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers

from tests.sampling.conditioned import ConditionedCase, Processor, dc, kl, qwen_vae
from tests.sampling.pipelines import (
    APART,
    CLIP_PAIR,
    UNCONDITIONAL_FIRST,
    ProjectedTextEncoder,
    TextEncoder,
    Tokenizer,
)
from tests.tiny import randomise

# Perturbed-attention guidance: the prompt once more, with perturbed attention.
PERTURBED = ((1, 0, 0),)


def _flow(**options: Any) -> Callable[[], Any]:
    return lambda: diffusers.FlowMatchEulerDiscreteScheduler(**options)


_SIZE = dict(height=16, width=16, strength=1.0)
_FLUX = dict(height=16, width=16, max_sequence_length=8, guidance_scale=3.5)
_FLUX_CONTROLNET = dict(
    patch_size=1,
    in_channels=4,
    num_layers=1,
    num_single_layers=1,
    attention_head_dim=8,
    num_attention_heads=2,
    joint_attention_dim=16,
    pooled_projection_dim=12,
    guidance_embeds=True,
    axes_dims_rope=(2, 2, 4),
)


def _flux(name: str, **options: Any) -> ConditionedCase:
    options = dict(guidance="true_cfg_scale", rows=APART, context=True) | options
    call = _FLUX | options.pop("call", {})
    more = options.pop("make", dict)
    return ConditionedCase(
        name,
        "FluxTransformer2DModel",
        _flow(),
        call=call,
        parts=CLIP_PAIR,
        make=lambda: dict(vae=kl(1)) | more(),
        **options,
    )


def _flux_controlnet() -> dict[str, Any]:
    return dict(controlnet=randomise(diffusers.FluxControlNetModel(**_FLUX_CONTROLNET)))


# Guidance is embedded and not run in two branches.
_EMBEDDED: dict[str, Any] = dict(guidance="guidance_scale", rows=((0,),), embedded=True)
_STRENGTH = dict(strength=1.0)
FLUX = (
    _flux("FluxImg2ImgPipeline", call=_STRENGTH),
    _flux("FluxInpaintPipeline", call=_STRENGTH, masks=("mask_image",)),
    _flux("FluxKontextPipeline", count=1, call=dict(max_area=256, _auto_resize=False)),
    _flux(
        "FluxKontextInpaintPipeline",
        count=1,
        call=dict(max_area=256, _auto_resize=False) | _STRENGTH,
        masks=("mask_image",),
    ),
    _flux(
        "FluxFillPipeline",
        masks=("mask_image",),
        config=dict(in_channels=4 + 4 + 256, out_channels=4),
        **_EMBEDDED,
    ),
    _flux(
        "FluxControlPipeline",
        pictures=("control_image",),
        config=dict(in_channels=8, out_channels=4),
        **_EMBEDDED,
    ),
    _flux(
        "FluxControlImg2ImgPipeline",
        pictures=("image", "control_image"),
        config=dict(in_channels=8, out_channels=4),
        call=_STRENGTH,
        **_EMBEDDED,
    ),
    _flux(
        "FluxControlInpaintPipeline",
        pictures=("image", "control_image"),
        masks=("mask_image",),
        config=dict(in_channels=8, out_channels=4),
        call=_STRENGTH,
        **_EMBEDDED,
    ),
    _flux("FluxControlNetPipeline", pictures=("control_image",), make=_flux_controlnet),
    _flux(
        "FluxControlNetImg2ImgPipeline",
        pictures=("image", "control_image"),
        make=_flux_controlnet,
        call=_STRENGTH,
        **_EMBEDDED,
    ),
    _flux(
        "FluxControlNetInpaintPipeline",
        pictures=("image", "control_image"),
        masks=("mask_image",),
        make=_flux_controlnet,
        call=_STRENGTH,
        **_EMBEDDED,
    ),
)

_SD3_ENCODERS = dict(
    text_encoder=ProjectedTextEncoder(8, 6),
    text_encoder_2=ProjectedTextEncoder(8, 6),
    tokenizer_2=Tokenizer(),
    text_encoder_3=TextEncoder(),
    tokenizer_3=Tokenizer(),
)


def _sd3_controlnet(**options: Any) -> dict[str, Any]:
    controlnet = diffusers.SD3ControlNetModel(
        **dict(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=16,
            caption_projection_dim=16,
            pooled_projection_dim=12,
            out_channels=4,
            pos_embed_max_size=8,
            **options,
        )
    )
    return dict(controlnet=randomise(controlnet), vae=kl(4))


def _sd3(name: str, **options: Any) -> ConditionedCase:
    call = dict(height=16, width=16, max_sequence_length=8) | options.pop("call", {})
    more = options.pop("make", lambda: dict(vae=kl(4)))
    return ConditionedCase(
        name,
        "SD3Transformer2DModel",
        _flow(),
        **dict(rows=UNCONDITIONAL_FIRST) | options,
        call=call,
        parts=_SD3_ENCODERS,
        make=more,
    )


SD3 = (
    _sd3("StableDiffusion3Img2ImgPipeline", call=_STRENGTH),
    _sd3(
        "StableDiffusion3InpaintPipeline",
        call=_STRENGTH,
        masks=("mask_image",),
        # The pipeline knows models of 16 or 33 channels.
        config=dict(in_channels=16, out_channels=16),
        make=lambda: dict(vae=kl(16)),
    ),
    _sd3("StableDiffusion3PAGPipeline", pictures=(), rows=PERTURBED, make=dict),
    _sd3("StableDiffusion3PAGImg2ImgPipeline", call=_STRENGTH, rows=PERTURBED),
    _sd3("StableDiffusion3ControlNetPipeline", pictures=("control_image",), make=_sd3_controlnet),
    _sd3(
        "StableDiffusion3ControlNetInpaintingPipeline",
        pictures=("control_image",),
        masks=("control_mask",),
        make=lambda: _sd3_controlnet(extra_conditioning_channels=1),
    ),
)

_QWEN_TEMPLATE = dict(prompt_template_encode="{}", prompt_template_encode_start_idx=0)


def _qwen_controlnet(**options: Any) -> dict[str, Any]:
    controlnet = diffusers.QwenImageControlNetModel(
        **dict(
            patch_size=2,
            in_channels=4,
            out_channels=1,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=16,
            axes_dims_rope=(2, 2, 4),
            **options,
        )
    )
    return dict(controlnet=randomise(controlnet))


def _qwen(name: str, **options: Any) -> ConditionedCase:
    more = options.pop("make", dict)
    return ConditionedCase(
        name,
        "QwenImageTransformer2DModel",
        _flow(use_dynamic_shifting=True),
        **dict(rows=APART) | options,
        context=True,
        normalised=True,
        guidance="true_cfg_scale",
        settings=_QWEN_TEMPLATE,
        make=lambda: dict(vae=qwen_vae()) | more(),
    )


_EDIT = dict(count=1, parts=dict(processor=Processor()), call=dict(height=16, width=16))
QWEN = (
    _qwen("QwenImageImg2ImgPipeline", call=_SIZE),
    _qwen("QwenImageInpaintPipeline", call=_SIZE, masks=("mask_image",)),
    _qwen("QwenImageEditPipeline", **_EDIT),
    _qwen("QwenImageEditPlusPipeline", **_EDIT),
    _qwen("QwenImageEditInpaintPipeline", **_EDIT | dict(masks=("mask_image",), call=_SIZE)),
    _qwen(
        "QwenImageControlNetPipeline",
        pictures=("control_image",),
        call=dict(height=16, width=16),
        make=_qwen_controlnet,
    ),
    _qwen(
        "QwenImageControlNetInpaintPipeline",
        pictures=("control_image",),
        masks=("control_mask",),
        call=dict(height=16, width=16),
        make=lambda: _qwen_controlnet(extra_condition_channels=4),
    ),
)


def _z_image(name: str, **options: Any) -> ConditionedCase:
    call = dict(height=16, width=16, max_sequence_length=8) | options.pop("call", {})
    more = options.pop("make", dict)
    return ConditionedCase(
        name,
        "ZImageTransformer2DModel",
        _flow(),
        ((0, 1),),
        offset=1.0,
        call=call,
        make=lambda: dict(vae=kl(4)) | more(),
        **options,
    )


def _z_controlnet(channels: int) -> dict[str, Any]:
    controlnet = diffusers.ZImageControlNetModel(
        control_layers_places=[0],
        control_refiner_layers_places=[0],
        control_in_dim=channels,
        add_control_noise_refiner="control_noise_refiner",
        dim=16,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
    )
    return dict(controlnet=randomise(controlnet))


Z_IMAGE = (
    _z_image("ZImageImg2ImgPipeline", call=_STRENGTH),
    _z_image("ZImageInpaintPipeline", call=_STRENGTH, masks=("mask_image",)),
    _z_image(
        "ZImageControlNetPipeline",
        pictures=("control_image",),
        make=lambda: _z_controlnet(4),
    ),
    _z_image(
        "ZImageControlNetInpaintPipeline",
        pictures=("image", "control_image"),
        masks=("mask_image",),
        make=lambda: _z_controlnet(9),
    ),
)


def _sana_controlnet() -> dict[str, Any]:
    controlnet = diffusers.SanaControlNetModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=16,
        sample_size=32,
    )
    return dict(controlnet=randomise(controlnet), vae=dc())


def _sana(name: str, **options: Any) -> ConditionedCase:
    call = dict(height=32, width=32, max_sequence_length=8, use_resolution_binning=False)
    return ConditionedCase(
        name,
        "SanaTransformer2DModel",
        _flow(),
        **dict(rows=UNCONDITIONAL_FIRST) | options,
        call=call,
        config=dict(sample_size=32),
        context=True,
    )


SANA = (
    _sana("SanaControlNetPipeline", pictures=("control_image",), make=_sana_controlnet),
    _sana("SanaPAGPipeline", pictures=(), rows=PERTURBED, make=lambda: dict(vae=dc())),
    ConditionedCase(
        "PixArtSigmaPAGPipeline",
        "PixArtTransformer2DModel",
        diffusers.DDIMScheduler,
        PERTURBED,
        pictures=(),
        call=dict(height=16, width=16, max_sequence_length=8, use_resolution_binning=False),
        config=dict(sample_size=32),
    ),
)


def _chroma(name: str, **options: Any) -> ConditionedCase:
    call = dict(height=16, width=16, max_sequence_length=8) | options.pop("call", {})
    return ConditionedCase(
        name,
        "ChromaTransformer2DModel",
        _flow(),
        APART,
        call=call,
        make=lambda: dict(vae=kl(1)),
        **options,
    )


CHROMA = (_chroma("ChromaImg2ImgPipeline", call=_STRENGTH),)

CASES = (*FLUX, *SD3, *QWEN, *Z_IMAGE, *SANA, *CHROMA)
