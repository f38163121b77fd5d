"""Generate images and videos with and without a calibration."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from calibri.artifact.apply import load
from calibri.artifact.calibration import Calibration
from calibri.errors import ConfigError
from calibri.pipelines import load_pipeline

# An image, or the frames of a video.
Picture = Image.Image | list[Image.Image]


def generate(
    pipeline: Any,
    prompts: Sequence[str],
    *,
    calibration: Calibration | str | Path | None = None,
    compare: bool = False,
    strength: float = 1.0,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
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
        seed: noise seed; prompt i is sampled with ``seed + i``.
        revision: branch, tag or commit of a repository.
        dtype: of the weights, when the pipeline is loaded here.
        device: where to run, when the pipeline is loaded here.

    Returns:
        One image per prompt; of a pipeline that makes videos, the frames of each.

    Raises:
        ConfigError: there is no prompt, or nothing to compare with.
        CalibriError: the pipeline or the calibration cannot be loaded.
    """
    prompts = [prompts] if isinstance(prompts, str) else prompts
    if not prompts:
        raise ConfigError("There is no prompt. Pass at least one text.")
    if compare and calibration is None:
        raise ConfigError("Comparing needs a calibration. Pass --calibration FOLDER.")
    if calibration is not None and not isinstance(calibration, Calibration):
        calibration = Calibration.from_pretrained(calibration)
    pipe = pipeline
    if isinstance(pipeline, str | Path):
        pipe = load_pipeline(str(pipeline), revision=revision, dtype=dtype, device=device)
    settings = _settings(calibration, num_inference_steps, guidance_scale)
    if calibration is None:
        return _images(pipe, prompts, seed, settings)
    before = _images(pipe, prompts, seed, settings) if compare else []
    applied = load(pipe, calibration, strength=strength)
    try:
        after = _images(pipe, prompts, seed, settings)
    finally:
        applied.unload()
    return [_beside(a, b) for a, b in zip(before, after, strict=True)] if compare else after


def _settings(
    calibration: Calibration | None, steps: int | None, guidance_scale: float | None
) -> dict[str, Any]:
    sampling = calibration.sampling if calibration else None
    chosen: dict[str, Any] = {
        "num_inference_steps": steps or (sampling and sampling.num_inference_steps),
        "guidance_scale": (
            guidance_scale if guidance_scale is not None else (sampling and sampling.guidance_scale)
        ),
        "height": sampling and sampling.height,
        "width": sampling and sampling.width,
        "num_frames": sampling and sampling.num_frames,
    }
    if sampling and sampling.true_cfg_scale > 1.0:
        # Pipelines with this argument run the second branch only beside a negative prompt.
        chosen |= {"true_cfg_scale": sampling.true_cfg_scale, "negative_prompt": ""}
    return {name: value for name, value in chosen.items() if value is not None}


def _images(
    pipe: Any, prompts: Sequence[str], seed: int, settings: dict[str, Any]
) -> list[Picture]:
    images = []
    for index, prompt in enumerate(prompts):
        generator = torch.Generator("cpu").manual_seed(seed + index)
        # Images or videos: pipelines name them differently, but they are always first.
        images.append(pipe(prompt, generator=generator, output_type="pil", **settings)[0][0])
    return images


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
