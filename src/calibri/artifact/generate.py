"""Generate images and videos with and without a calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from calibri.artifact.apply import apply
from calibri.artifact.calibration import Calibration
from calibri.errors import ConfigError
from calibri.pipelines import load_pipeline
from calibri.sampling import GivenSettings, PipelineCall
from calibri.signatures import typed

# An image, or the frames of a video.
Picture = Image.Image | list[Image.Image]


@typed
def generate(
    pipeline: Any,
    prompts: Sequence[str] | str,
    *,
    calibration: Calibration | str | Path | None = None,
    compare: bool = False,
    strength: float = 1.0,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    true_cfg_scale: float | None = None,
    negative_prompt: str | None = None,
    seed: int = 0,
    revision: str | None = None,
    dtype: str = "float32",
    device: str = "auto",
) -> list[Picture]:
    """Generate one image or video per prompt; with ``compare``, original and calibrated pairs.

    Args:
        pipeline: a name (see ``load_pipeline``) or a loaded pipeline.
        prompts: texts, or one.
        calibration: a folder, a finished run, a repository id, or a ``Calibration``.
        compare: put the original on the left and the calibrated image on the right, same noise.
        strength: 0 is the original model, 1 the full calibration.
        num_inference_steps: None for the steps of the calibration.
        guidance_scale: None for the guidance of the calibration.
        true_cfg_scale: the same for the pipelines that call it so (FLUX, Qwen-Image).
        negative_prompt: None for that of the calibration, or for the pipeline's own.
        seed: noise seed; prompt i is sampled with ``seed + i``.
        revision: branch, tag or commit of a repository.
        dtype: of the weights, when the pipeline is loaded here.
        device: where to run, when the pipeline is loaded here.

    Returns:
        One image per prompt; of a pipeline that makes videos, the frames of each.

    Raises:
        ConfigError: there is no prompt, nothing to compare with, or guidance that has no effect
            on this pipeline.
        CalibriError: the pipeline or the calibration cannot be loaded.
    """
    prompts = [prompts] if isinstance(prompts, str) else prompts
    _check_arguments(prompts, calibration, compare)
    if isinstance(calibration, str | Path):
        calibration = Calibration.from_pretrained(calibration)
    if isinstance(pipeline, str | Path):
        pipeline = load_pipeline(str(pipeline), revision=revision, dtype=dtype, device=device)
    given = {
        "num_inference_steps": num_inference_steps,
        "guidance_scale": guidance_scale,
        "true_cfg_scale": true_cfg_scale,
        "negative_prompt": negative_prompt,
    }
    call = PipelineCall(pipeline, _settings(calibration, given))
    _check_effect(pipeline, prompts[0], seed, call)
    if calibration is None:
        return _images(pipeline, prompts, seed, call)
    before = _images(pipeline, prompts, seed, call) if compare else []
    after = _calibrated_images(pipeline, prompts, seed, call, calibration, strength)
    return [_beside(a, b) for a, b in zip(before, after, strict=True)] if compare else after


def _check_arguments(prompts: Sequence[str], calibration: object, compare: bool) -> None:
    if not prompts:
        raise ConfigError("There is no prompt. Pass at least one text.")
    if compare and calibration is None:
        raise ConfigError("Comparing needs a calibration. Pass --calibration FOLDER.")


def _calibrated_images(
    pipe: Any,
    prompts: Sequence[str],
    seed: int,
    call: PipelineCall,
    calibration: Calibration,
    strength: float,
) -> list[Picture]:
    applied = apply(pipe, calibration, strength)
    try:
        return _images(pipe, prompts, seed, call)
    finally:
        applied.unload()


def _settings(calibration: Calibration | None, given: Mapping[str, Any]) -> GivenSettings:
    """Settings as given, else those of the calibration, else those of the pipeline."""
    names = [field.name for field in fields(GivenSettings)]
    stored = {n: getattr(calibration.sampling, n) for n in names} if calibration else {}
    return GivenSettings(**stored | {n: v for n, v in given.items() if v is not None})


def _images(pipe: Any, prompts: Sequence[str], seed: int, call: PipelineCall) -> list[Picture]:
    return [
        _sampled(pipe, seed + index, call.text_arguments(prompt), output_type="pil")[0]
        for index, prompt in enumerate(prompts)
    ]


def _check_effect(pipe: Any, prompt: str, seed: int, call: PipelineCall) -> None:
    few = call.text_arguments(prompt) | {"num_inference_steps": 2}
    call.check_effect(lambda scales: _sampled(pipe, seed, few | dict(scales), output_type="pt"))


def _sampled(pipe: Any, seed: int, arguments: Mapping[str, Any], output_type: str) -> Any:
    generator = torch.Generator("cpu").manual_seed(seed)
    # Images or videos: pipelines name them differently, but they are always first.
    return pipe(generator=generator, output_type=output_type, **arguments)[0]


def _beside(left: Picture, right: Picture) -> Picture:
    if isinstance(left, list) and isinstance(right, list):
        return [_pair(a, b) for a, b in zip(left, right, strict=True)]
    assert isinstance(left, Image.Image)
    assert isinstance(right, Image.Image)
    return _pair(left, right)


def _pair(left: Image.Image, right: Image.Image) -> Image.Image:
    gap = max(2, left.width // 64)
    canvas = Image.new("RGB", (left.width + gap + right.width, left.height), "white")
    canvas.paste(left, (0, 0))
    canvas.paste(right, (left.width + gap, 0))
    return canvas
