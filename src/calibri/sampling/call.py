"""What a pipeline is called with besides its prompts: one rule for searching and generating."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from calibri.errors import ConfigError, UnsupportedModelError
from calibri.pipelines import Family, Pipeline, is_modular, networks_of
from calibri.sampling.modular import guider_scale, pictures_of
from calibri.sampling.signatures import (
    NEGATIVE,
    call_arguments,
    needs_source,
    own_negative_prompt,
    required_arguments,
)

# What pipelines call the number of frames of a video.
_FRAMES = ("num_frames", "video_length", "frames")


class SamplingSettings(Protocol):
    """How images are sampled, in diffusers' own words; None leaves it to the pipeline."""

    @property
    def num_inference_steps(self) -> int | None:
        """Steps of the scheduler."""
        ...

    @property
    def guidance_scale(self) -> float | None:
        """Classifier-free guidance of most pipelines, or embedded guidance."""
        ...

    @property
    def true_cfg_scale(self) -> float | None:
        """Classifier-free guidance of the pipelines that call it so."""
        ...

    @property
    def negative_prompt(self) -> str | None:
        """Prompt of the unconditional branch."""
        ...

    @property
    def height(self) -> int | None:
        """Pixels."""
        ...

    @property
    def width(self) -> int | None:
        """Pixels."""
        ...

    @property
    def num_frames(self) -> int | None:
        """Frames of a video."""
        ...


@dataclass(frozen=True)
class GivenSettings:
    """Settings of which any can be left to the pipeline; see ``SamplingSettings``."""

    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    true_cfg_scale: float | None = None
    negative_prompt: str | None = None
    height: int | None = None
    width: int | None = None
    num_frames: int | None = None


class PipelineCall:
    """How a pipeline is called with given settings, but for prompts and noise.

    Args:
        pipe: a diffusers pipeline.
        settings: what it is called with.

    Attributes:
        accepted: the arguments that the pipeline takes, by name.

    Raises:
        UnsupportedModelError: the pipeline does not sample from a prompt alone.
        ConfigError: the guidance or the number of frames has no effect on this pipeline.
    """

    def __init__(self, pipe: Pipeline, settings: SamplingSettings) -> None:
        self.accepted = call_arguments(pipe)
        self._pipe = pipe
        self._settings = settings
        self._picture: dict[str, Any] = {}
        self._check()

    @property
    def makes_videos(self) -> bool:
        """Whether the pipeline makes videos."""
        return self._frames is not None

    @property
    def takes_one_prompt(self) -> bool:
        """Whether a call makes one picture at a time."""
        return self._family.one_prompt

    @property
    def cfg_scale(self) -> float:
        """The w of classifier-free guidance, u + w (c - u); 1 without it."""
        negative = any(name.startswith(NEGATIVE) for name in self.accepted)
        negative = negative or guider_scale(self._pipe, 1.0) is not None
        # A network of its own for the second branch needs no negative prompt.
        if not negative and all(network.branch is None for network in networks_of(self._pipe)):
            return 1.0
        name = "true_cfg_scale" if "true_cfg_scale" in self.accepted else "guidance_scale"
        scale = self._scales().get(name, 1.0)
        own = guider_scale(self._pipe, scale)
        return self._family.guidance.scale(scale) if own is None else own

    @property
    def guided(self) -> bool:
        """Whether classifier-free guidance runs two branches."""
        return self.cfg_scale > 1.0

    @property
    def negative_prompt(self) -> str | None:
        """Prompt of the unconditional branch, None without one; the pipeline's own unless given."""
        if not self.guided:
            return None
        given = self._settings.negative_prompt
        return own_negative_prompt(self._pipe) if given is None else given

    def arguments(self) -> dict[str, Any]:
        """Return guidance, size, frames and steps as arguments of the pipeline's call, by name."""
        settings = self._settings
        lengths: dict[str, int | None] = {
            "height": settings.height,
            "width": settings.width,
            "num_inference_steps": settings.num_inference_steps,
        }
        if self._frames is not None:
            lengths[self._frames] = settings.num_frames
        scales = self._scales()
        # Ideogram's default would contradict the guidance that was chosen.
        chosen = "guidance_schedule" in self.accepted and "guidance_scale" in scales
        return {
            **scales,
            **{name: length for name, length in lengths.items() if length is not None},
            **self.area(settings.height, settings.width),
            **({"guidance_schedule": None} if chosen else {}),
        }

    def area(self, height: int | None, width: int | None) -> dict[str, int]:
        """Return what a size is beside height and width: FLUX Kontext takes their ratio alone."""
        if "max_area" not in self.accepted or height is None or width is None:
            return {}
        return {"max_area": height * width}

    def text_arguments(self, prompt: str) -> dict[str, Any]:
        """Return the arguments of a call with one text, by name."""
        negative = self.negative_prompt or self._settings.negative_prompt
        # Of guidance that is left to the pipeline, it decides what a text is for.
        told = self.guided or negative
        texts = {"negative_prompt": negative or ""} if told else {}
        known = {name: text for name, text in texts.items() if name in self.accepted}
        # Not every pipeline takes the prompt first: FLUX.2 takes images.
        return {"prompt": prompt} | self._picture | known | self.arguments()

    def from_picture(self, picture: Any) -> PipelineCall:
        """Return the same call that starts from a source picture."""
        call = copy.copy(self)
        call._picture = {"image": picture}
        return call

    def check_source(self, has_picture: bool) -> None:
        """Refuse a source picture that the pipeline does not take, or the lack of one.

        Raises:
            ConfigError: either of these.
        """
        name = type(self._pipe).__name__
        if has_picture and "image" not in self.accepted:
            raise ConfigError(
                f"There is a source picture, and {name} takes none: it makes pictures from text. "
                "Leave the picture out, or use a pipeline that edits."
            )
        if not has_picture and needs_source(self._pipe):
            raise ConfigError(
                f"{name} starts from a picture, and none was given. Give each prompt an "
                '"image" in a file of JSON lines (--prompts), or --image to `calibri generate`.'
            )

    def check_effect(self, run: Callable[[Mapping[str, float]], Any]) -> None:
        """Refuse guidance that does nothing, where neither signature nor family tell what it does.

        Args:
            run: calls the pipeline with this guidance, all else being equal; returns images.

        Raises:
            ConfigError: the images do not depend on the guidance.
        """
        name = type(self._pipe).__name__
        asked = {argument: scale for argument, scale in self._scales().items() if scale > 1.0}
        if self._is_known_to_guide:
            return
        for argument, scale in asked.items():
            if _equal(run({argument: scale}), run({argument: 1.5 * scale})):
                raise _without_guidance(
                    f"{argument} is {scale}, which changes nothing of what {name} makes with this "
                    "model"
                )

    @property
    def _is_known_to_guide(self) -> bool:
        if guider_scale(self._pipe, 1.0) is not None:
            return True
        runs_branches = self._family.guidance.layout not in ("", *_EMBEDDED)
        return self._embeds or (runs_branches and not _is_distilled(self._pipe))

    @property
    def _embeds(self) -> bool:
        return networks_of(self._pipe)[0].embeds_guidance

    def _scales(self) -> dict[str, float]:
        """List the guidance arguments that have an effect on this pipeline."""
        scales = {
            "guidance_scale": self._settings.guidance_scale,
            "true_cfg_scale": self._settings.true_cfg_scale,
        }
        if "true_cfg_scale" in self.accepted and not self._embeds:
            del scales["guidance_scale"]
        return {
            name: scale
            for name, scale in scales.items()
            if name in self.accepted and scale is not None
        }

    @property
    def _family(self) -> Family:
        return networks_of(self._pipe)[0].family

    @property
    def _frames(self) -> str | None:
        """The argument that holds the number of frames, of a pipeline that makes videos."""
        return next((name for name in _FRAMES if name in self.accepted), None)

    def _check(self) -> None:
        name = type(self._pipe).__name__
        if is_modular(self._pipe):
            self._check_blocks(name)
        # Prompts may bring a source picture, see ``check_source``.
        needed = set(required_arguments(self._pipe)) - {"prompt", "image"}
        if "prompt" not in self.accepted or needed:
            also = f" but with {', '.join(sorted(needed))}" if needed else ""
            raise UnsupportedModelError(
                f"{name} is not called with a prompt alone{also}. Use a pipeline that samples from "
                "text."
            )
        if self._settings.num_frames is not None and not self.makes_videos:
            raise ConfigError(f"{name} makes images, so num_frames has no effect. Leave it out.")
        for setting in ("num_inference_steps", "height", "width", "num_frames"):
            length = getattr(self._settings, setting)
            if length is not None and length < 1:
                raise ConfigError(f"{setting} is {length}. Give at least 1, or leave it out.")
        self._check_guidance(name)

    def _check_blocks(self, name: str) -> None:
        pictures_of(self._pipe)
        if "num_inference_steps" not in self.accepted:
            raise UnsupportedModelError(
                f"{name} takes no number of steps: its schedule is a fixed list, for which its "
                "weights were distilled. A calibration can be loaded onto it and fused into it."
            )

    def _check_guidance(self, name: str) -> None:
        effective, settings = self._scales(), self._settings
        for argument, other in (
            ("guidance_scale", "true_cfg_scale"),
            ("true_cfg_scale", "guidance_scale"),
        ):
            scale = getattr(settings, argument)
            if scale is None or scale <= 1.0 or argument in effective:
                continue
            if argument in self.accepted:
                lack = f"this model of {name} has no guidance embedded"
            else:
                lack = f"{name} takes no such argument"
            if other in self.accepted:
                raise ConfigError(
                    f"{argument} is {scale}, but {lack}. Set {other} for classifier-free guidance."
                )
            raise _without_guidance(f"{argument} is {scale}, but {lack}")


@contextmanager
def size_in_words(pipe: Pipeline, size: Mapping[str, int | None]) -> Iterator[None]:
    """Say which size a pipeline refused; without one it is no one's setting.

    Args:
        pipe: what is called inside of ``with``; diffusers refuses sizes by a ``ValueError``.
        size: height, width and number of frames that it is called with, by name.

    Raises:
        ConfigError: it refused the size.
    """
    try:
        yield
    except ValueError as error:
        asked = ", ".join(f"{name} {length}" for name, length in size.items() if length)
        if not asked:
            raise
        raise ConfigError(
            f"{type(pipe).__name__} could not sample at {asked}: {error} Choose another size, or "
            "leave it out for the pipeline's own."
        ) from error


_EMBEDDED = ("embedded", "embedded, or one call for each branch")


def _is_distilled(pipe: Pipeline) -> bool:
    """Say whether a pipeline is told to ignore guidance, as those of FLUX.2-klein and Krea 2."""
    return bool(getattr(getattr(pipe, "config", None), "is_distilled", False))


def _without_guidance(reason: str) -> ConfigError:
    return ConfigError(f"{reason}. Leave the guidance at 1.")


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    return bool(one == other)
