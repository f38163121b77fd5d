"""Call a modular pipeline as any other: its inputs by name, its guidance, and what it returns."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from calibri.errors import UnsupportedModelError
from calibri.pipelines import Pipeline, is_modular
from calibri.sampling.guiders import guiders_of

_GUIDANCE = "guidance_scale"
_PICTURES = ("images", "videos")
# Blocks say that they need these, and other blocks before them make them.
_MADE_INSIDE = frozenset({"latents", "audio_latents", "num_inference_steps", "timesteps"})


def modular_arguments(pipe: Any) -> Mapping[str, inspect.Parameter]:
    """List what a modular pipeline is called with.

    Args:
        pipe: a modular pipeline of diffusers.

    Returns:
        Name to parameter, the inputs of its blocks; ``guidance_scale`` among them where a guider
        has one. Without a default is what a caller must give.
    """
    given = {p.name: p for p in pipe.blocks.inputs if p.name}
    found = {name: _parameter(name, given[name]) for name in given}
    if any(hasattr(guider, _GUIDANCE) for guider in guiders_of(pipe)):
        found[_GUIDANCE] = inspect.Parameter(
            _GUIDANCE, inspect.Parameter.KEYWORD_ONLY, default=None
        )
    return found


def _parameter(name: str, given: Any) -> inspect.Parameter:
    needed = given.required and given.default is None and name not in _MADE_INSIDE
    default = inspect.Parameter.empty if needed else given.default
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default)


def guider_scale(pipe: Pipeline, scale: float) -> float | None:
    """Return w of u + w (c - u) for a guidance scale of the guider of a pipeline.

    Returns:
        1 without guidance; None where the pipeline is not modular or has no guider.
    """
    guiders = guiders_of(pipe) if is_modular(pipe) else []
    if not guiders:
        return None
    # c + g (c - u) = u + (1 + g) (c - u)
    original = bool(getattr(guiders[0], "use_original_formulation", False))
    return max(1.0, scale + 1.0 if original else scale)


def sampled(pipe: Pipeline, **arguments: Any) -> Any:
    """Call a pipeline and return its pictures.

    Args:
        pipe: any pipeline.
        arguments: of its call, see ``modular_arguments``.

    Raises:
        UnsupportedModelError: a modular pipeline makes neither images nor videos.
    """
    if not is_modular(pipe):
        # Pipelines name it differently, but it is always first.
        return pipe(**arguments)[0]
    output = pictures_of(pipe)
    if isinstance(arguments.get("prompt"), list) and len(arguments["prompt"]) == 1:
        # Some take a text alone, and then one generator.
        arguments = {name: _single(value) for name, value in arguments.items()}
    with _guided(pipe, arguments.pop(_GUIDANCE, None) if guiders_of(pipe) else None):
        return pipe(output=output, **arguments)


def _single(value: Any) -> Any:
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def pictures_of(pipe: Any) -> str:
    """Name the output of a modular pipeline that holds its images or videos.

    Raises:
        UnsupportedModelError: it makes neither.
    """
    names = [output.name for output in pipe.blocks.outputs]
    found = next((name for name in _PICTURES if name in names), None)
    if found is None:
        raise UnsupportedModelError(
            f"{type(pipe).__name__} makes neither images nor videos but {', '.join(names)}, and "
            "rewards judge pictures. A calibration can be loaded onto it and fused into it."
        )
    return found


@contextmanager
def _guided(pipe: Pipeline, scale: float | None) -> Iterator[None]:
    """Give the guiders of a pipeline a guidance scale inside; None leaves them as they are."""
    guiders = [g for g in guiders_of(pipe) if scale is not None and hasattr(g, _GUIDANCE)]
    before = [guider.guidance_scale for guider in guiders]
    for guider in guiders:
        guider.guidance_scale = scale
    try:
        yield
    finally:
        for guider, own in zip(guiders, before, strict=True):
            guider.guidance_scale = own
