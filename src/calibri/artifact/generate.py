"""Generate images and videos, with a calibration or without."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from calibri.artifact.apply import applied
from calibri.artifact.calibration import Calibration
from calibri.errors import ConfigError
from calibri.pipelines import load_pipeline
from calibri.prompts import load_picture
from calibri.sampling import GivenSettings, PipelineCall, sampled, size_in_words
from calibri.signatures import typed

# An image, or the frames of a video.
Picture = Image.Image | list[Image.Image]


@typed
def generate(
    pipeline: Any,
    prompts: Sequence[str] | str,
    *,
    calibration: Calibration | str | Path | None = None,
    strength: float = 1.0,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    true_cfg_scale: float | None = None,
    negative_prompt: str | None = None,
    height: int | None = None,
    width: int | None = None,
    num_frames: int | None = None,
    image: str | Path | Image.Image | None = None,
    seed: int = 0,
    revision: str | None = None,
    lora: str | None = None,
    dtype: str = "float32",
    device: str = "auto",
) -> list[Picture]:
    """Generate one image or video per prompt; ``calibri.compare`` puts two side by side.

    Args:
        pipeline: a name (see ``load_pipeline``) or a loaded pipeline.
        prompts: texts, or one.
        calibration: a folder, a finished run, a repository id, or a ``Calibration``.
        strength: 0 is the original model, 1 the full calibration.
        num_inference_steps: None for the steps of the calibration.
        guidance_scale: None for the guidance of the calibration.
        true_cfg_scale: the same for the pipelines that call it so (FLUX, Qwen-Image).
        negative_prompt: None for that of the calibration, or for the pipeline's own.
        height: pixels; None for those of the calibration, or for the pipeline's own.
        width: the same.
        num_frames: of a video; the same.
        image: source picture of a pipeline that edits, for every prompt.
        seed: noise seed; prompt i is sampled with ``seed + i``.
        revision: branch, tag or commit of a repository.
        lora: a LoRA that a named pipeline gets, a folder or a repository id; None for that of the
            calibration.
        dtype: of the weights, when the pipeline is loaded here.
        device: where to run, when the pipeline is loaded here.

    Returns:
        One image per prompt; of a pipeline that makes videos, the frames of each.

    Raises:
        ConfigError: there is no prompt, guidance that has no effect on this pipeline, or a source
            picture that it does not take or lacks.
        CalibriError: the pipeline or the calibration cannot be loaded.
    """
    texts = texts_of(prompts)
    if isinstance(calibration, str | Path):
        calibration = Calibration.from_pretrained(calibration)
    pipeline = loaded(pipeline, calibration, revision, lora, dtype, device)
    given = {
        "num_inference_steps": num_inference_steps,
        "guidance_scale": guidance_scale,
        "true_cfg_scale": true_cfg_scale,
        "negative_prompt": negative_prompt,
        "height": height,
        "width": width,
        "num_frames": num_frames,
    }
    artist = Artist(pipeline, texts, seed, settings_of(calibration, given), image)
    artist.check_effect()
    with nullcontext() if calibration is None else applied(pipeline, calibration, strength):
        return artist.pictures()


def loaded(
    pipeline: Any,
    calibration: Calibration | None,
    revision: str | None,
    lora: str | None,
    dtype: str,
    device: str,
) -> Any:
    """Load a pipeline that is named; one that is loaded stays as it is.

    Raises:
        ConfigError: a LoRA is named for one that is loaded.
        CalibriError: it cannot be loaded.
    """
    if isinstance(pipeline, str | Path):
        own = lora or (None if calibration is None else calibration.lora)
        return load_pipeline(str(pipeline), revision=revision, lora=own, dtype=dtype, device=device)
    if lora is not None:
        raise ConfigError(
            f"The pipeline is loaded, so '{lora}' is not put onto it. Load it with "
            "pipe.load_lora_weights, or name the pipeline."
        )
    return pipeline


def texts_of(prompts: Sequence[str] | str) -> Sequence[str]:
    """List the prompts.

    Raises:
        ConfigError: there is none.
    """
    if not prompts:
        raise ConfigError("There is no prompt. Pass at least one text.")
    return [prompts] if isinstance(prompts, str) else prompts


def settings_of(calibration: Calibration | None, given: Mapping[str, Any]) -> GivenSettings:
    """Settings as given, else those of the calibration, else those of the pipeline."""
    names = [field.name for field in fields(GivenSettings)]
    stored = {n: getattr(calibration.sampling, n) for n in names} if calibration else {}
    return GivenSettings(**stored | {n: v for n, v in given.items() if v is not None})


class Artist:
    """Samples prompts, each time from the same noise.

    Args:
        pipe: a loaded pipeline.
        prompts: texts; prompt i has the noise of ``seed + i``.
        seed: not negative.
        settings: how to sample.
        image: source picture of a pipeline that edits, for every prompt.

    Raises:
        ConfigError: a setting has no effect on this pipeline, or it lacks a source picture or takes
            none.
        UnsupportedModelError: it does not sample from a prompt alone.
    """

    def __init__(
        self,
        pipe: Any,
        prompts: Sequence[str],
        seed: int,
        settings: GivenSettings,
        image: str | Path | Image.Image | None = None,
    ) -> None:
        self._pipe, self._prompts, self._seed = pipe, prompts, seed
        self._call = PipelineCall(pipe, settings)
        self._call.check_source(image is not None)
        if image is not None:
            picture = image if isinstance(image, Image.Image) else load_picture(image)
            self._call = self._call.from_picture(picture)
        names = ("height", "width", "num_frames")
        self._size = {name: getattr(settings, name) for name in names}

    def check_effect(self) -> None:
        """Refuse guidance that does nothing, by images of two steps.

        Raises:
            ConfigError: it does nothing.
        """
        few = self._call.text_arguments(self._prompts[0]) | {"num_inference_steps": 2}
        self._call.check_effect(
            lambda scales: self._sampled(self._seed, few | dict(scales), output_type="pt")
        )

    def pictures(self) -> list[Picture]:
        """Sample an image or a video of each prompt."""
        return [
            self._sampled(self._seed + i, self._call.text_arguments(prompt), output_type="pil")[0]
            for i, prompt in enumerate(self._prompts)
        ]

    def values(self) -> list[Tensor]:
        """Sample the same as numbers, floats in [0, 1], on the CPU."""
        return [
            self._sampled(self._seed + i, self._call.text_arguments(prompt), output_type="pt").cpu()
            for i, prompt in enumerate(self._prompts)
        ]

    def _sampled(self, seed: int, arguments: Mapping[str, Any], output_type: str) -> Any:
        generator = torch.Generator("cpu").manual_seed(seed)
        with size_in_words(self._pipe, self._size):
            return sampled(self._pipe, generator=generator, output_type=output_type, **arguments)
