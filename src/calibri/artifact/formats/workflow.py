"""An example workflow for ComfyUI, in its API format, which opens when dropped on its window."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from calibri.artifact.calibration import Calibration, Sampling
from calibri.pipelines import family_of

Node = dict[str, Any]

_IMAGE, _VIDEO = 1024, (832, 480, 81)
# Wan 2.2 changes from high to low noise where sigma falls below this, and ComfyUI samples it
# with this shift.
_BOUNDARY, _SHIFT = 0.875, 8.0
_MODELS = ("high noise", "low noise")
_WAN_22_5B = 48  # channels of its latents, which have a node of their own


@dataclass(frozen=True)
class _Loaders:
    """What ComfyUI loads beside the transformer.

    Attributes:
        node: the loader of text encoders.
        files: how many it takes.
        kind: its type, where it asks for one.
        latent: the node of an empty latent.
        embedded: whether guidance is an input of the model.
    """

    node: str
    files: int = 1
    kind: str = ""
    latent: str = "EmptySD3LatentImage"
    embedded: bool = False

    @property
    def is_video(self) -> bool:
        return self.latent == "EmptyHunyuanLatentVideo"


_LOADERS = {
    "FluxTransformer2DModel": _Loaders("DualCLIPLoader", 2, "flux", embedded=True),
    "Flux2Transformer2DModel": _Loaders(
        "CLIPLoader", kind="flux2", latent="EmptyFlux2LatentImage", embedded=True
    ),
    "SD3Transformer2DModel": _Loaders("TripleCLIPLoader", 3),
    "QwenImageTransformer2DModel": _Loaders("CLIPLoader", kind="qwen_image"),
    "ChromaTransformer2DModel": _Loaders("CLIPLoader", kind="chroma"),
    "Lumina2Transformer2DModel": _Loaders("CLIPLoader", kind="lumina2"),
    "ZImageTransformer2DModel": _Loaders("CLIPLoader", kind="lumina2"),
    "HiDreamImageTransformer2DModel": _Loaders("QuadrupleCLIPLoader", 4),
    "HunyuanImageTransformer2DModel": _Loaders(
        "DualCLIPLoader", 2, "hunyuan_image", latent="EmptyHunyuanImageLatent"
    ),
    "HunyuanVideoTransformer3DModel": _Loaders(
        "DualCLIPLoader", 2, "hunyuan_video", "EmptyHunyuanLatentVideo", embedded=True
    ),
    "WanTransformer3DModel": _Loaders("CLIPLoader", kind="wan", latent="EmptyHunyuanLatentVideo"),
}


def workflow_json(calibration: Calibration, transformer: nn.Module, files: Sequence[str]) -> str:
    """Write a workflow with the settings of a calibration, whose files are loaded last.

    Names of model files are for the user to choose; steps, guidance and size are filled in.

    Args:
        calibration: with its sampling.
        transformer: of the pipeline, the first where there are two.
        files: one for each transformer, as ComfyUI lists them in ``models/loras``.

    Returns:
        JSON; empty where a workflow from text alone is not known.
    """
    loaders = _LOADERS.get(type(transformer).__name__)
    if loaders is None or _needs_more_than_text(transformer) or len(files) > len(_MODELS):
        return ""
    nodes = {**_models(files), **_texts(calibration.sampling, loaders)}
    nodes["latent"] = _node(loaders.latent, "Size", **_size(calibration.sampling, loaders))
    nodes |= _samplers(calibration, loaders, len(files))
    nodes["decoded"] = _node("VAEDecode", "Decode", samples=["sampler", 0], vae=["vae", 0])
    nodes["saved"] = _saved(loaders)
    return json.dumps(nodes, indent=2) + "\n"


def _needs_more_than_text(transformer: nn.Module) -> bool:
    """Tell a model that is also given an image, or whose latents are not those of its family."""
    config: Any = transformer.config
    plain = (None, config.in_channels, config.in_channels // 4)  # patches of 2 x 2 in channels
    return (
        getattr(config, "out_channels", None) not in plain  # FLUX Fill, Wan from images
        or getattr(config, "image_dim", None) is not None
        or getattr(config, "image_condition_type", None) is not None
        or config.in_channels == _WAN_22_5B
    )


def _node(class_type: str, title: str, **inputs: Any) -> Node:
    return {"class_type": class_type, "inputs": inputs, "_meta": {"title": title}}


def _models(files: Sequence[str]) -> Mapping[str, Node]:
    nodes = {}
    for index, file in enumerate(files):
        said = f", {_MODELS[index]}" if len(files) > 1 else ""
        model, loaded = f"model{index or ''}", f"calibration{index or ''}"
        choose = f"choose the model{said}"
        nodes[model] = _node("UNETLoader", f"Model{said}", unet_name=choose, weight_dtype="default")
        nodes[loaded] = _node(
            "LoraLoaderModelOnly",
            f"Calibration{said}: after all other LoRAs",
            model=[model, 0],
            lora_name=file,
            strength_model=1.0,
        )
    return nodes


def _texts(sampling: Sampling, loaders: _Loaders) -> Mapping[str, Node]:
    numbers = [""] if loaders.files == 1 else range(1, loaders.files + 1)
    encoders: dict[str, Any] = {f"clip_name{n}": "choose a text encoder" for n in numbers}
    encoders |= {"type": loaders.kind} if loaders.kind else {}
    text = {"clip": ["encoders", 0]}
    nodes = {
        "encoders": _node(loaders.node, "Text encoders", **encoders),
        "vae": _node("VAELoader", "VAE", vae_name="choose a VAE"),
        "prompt": _node("CLIPTextEncode", "Prompt", **text, text="a red circle on a blue square"),
        "negative": _node("CLIPTextEncode", "Negative", **text, text=sampling.negative_prompt),
    }
    if loaders.embedded:
        nodes["guidance"] = _node(
            "FluxGuidance",
            "Guidance the calibration was made for",
            conditioning=["prompt", 0],
            guidance=sampling.guidance_scale,
        )
    return nodes


def _size(sampling: Sampling, loaders: _Loaders) -> dict[str, int]:
    width, height, frames = _VIDEO if loaders.is_video else (_IMAGE, _IMAGE, 1)
    size = {"width": sampling.width or width, "height": sampling.height or height}
    size |= {"length": sampling.num_frames or frames} if loaders.is_video else {}
    return size | {"batch_size": 1}


def _samplers(calibration: Calibration, loaders: _Loaders, models: int) -> Mapping[str, Node]:
    steps = calibration.sampling.num_inference_steps
    shared = {
        "positive": ["guidance" if loaders.embedded else "prompt", 0],
        "negative": ["negative", 0],
        "steps": steps,
        "cfg": _cfg(calibration, loaders),
        "sampler_name": "euler",
        "scheduler": "simple",
    }
    latent = {"latent_image": ["latent", 0]}
    model = {"model": ["calibration", 0]}
    if models == 1:
        title = "Steps the calibration was made for"
        return {"sampler": _node("KSampler", title, **model, **shared, **latent, seed=0, denoise=1)}
    change = first_step_below(_BOUNDARY, steps, _SHIFT)
    return {
        "first": _node(
            "KSamplerAdvanced",
            f"High noise: as long as it is above {_BOUNDARY}",
            **model,
            **shared,
            **latent,
            **_part(0, change, noise="enable", rest="enable"),
        ),
        "sampler": _node(
            "KSamplerAdvanced",
            "Low noise: the other steps",
            model=["calibration1", 0],
            **shared,
            latent_image=["first", 0],
            **_part(change, steps, noise="disable", rest="disable"),
        ),
    }


def _part(start: int, end: int, *, noise: str, rest: str) -> dict[str, Any]:
    return {
        "add_noise": noise,
        "noise_seed": 0,
        "start_at_step": start,
        "end_at_step": end,
        "return_with_leftover_noise": rest,
    }


def first_step_below(boundary: float, steps: int, shift: float) -> int:
    """Count the steps whose sigma is at least a boundary, of s t / (1 + (s - 1) t), t = 1 - i / n.

    Args:
        boundary: a share of noise.
        steps: n, of the schedule.
        shift: s, of the schedule.
    """
    time = boundary / (shift - (shift - 1) * boundary)
    return min(steps, math.floor(steps * (1 - time) + 1e-9) + 1)


def _cfg(calibration: Calibration, loaders: _Loaders) -> float:
    """The w of u + w (c - u), which ComfyUI calls cfg; 1 is none."""
    sampling = calibration.sampling
    if loaders.embedded or sampling.true_cfg_scale > 1.0:
        return sampling.true_cfg_scale
    return family_of(calibration.transformer_class).guidance.scale(sampling.guidance_scale)


def _saved(loaders: _Loaders) -> Node:
    images: dict[str, Any] = {"images": ["decoded", 0], "filename_prefix": "calibrated"}
    if not loaders.is_video:
        return _node("SaveImage", "Save", **images)
    still = {"fps": 16.0, "lossless": False, "quality": 80, "method": "default"}
    return _node("SaveAnimatedWEBP", "Save", **images, **still)
