"""What a model can do beside having sites: embedded guidance, known timesteps, a known shift."""

from __future__ import annotations

from typing import Any

from diffusers import FlowMatchEulerDiscreteScheduler
from torch import nn

from calibri.errors import UnsupportedModelError


def embeds_guidance(transformer: nn.Module) -> bool:
    """Say whether a transformer is distilled to take its guidance as an input."""
    return bool(getattr(getattr(transformer, "config", None), "guidance_embeds", False))


def check_embedded_guidance(transformer: nn.Module) -> None:
    """Refuse a transformer without embedded guidance.

    Raises:
        UnsupportedModelError: there is nothing to multiply.
    """
    if not embeds_guidance(transformer):
        raise UnsupportedModelError(
            f"This {type(transformer).__name__} has no guidance embedded, so there is nothing for "
            "a factor on it to multiply. Under classifier-free guidance the output weights are "
            "the guidance: set space.guidance to false and space.output_weights to true."
        )


# Largest timestep that a model is given: pipelines divide by 1000 for some.
_TIMESTEPS = {
    "FluxTransformer2DModel": 1.0,
    "QwenImageTransformer2DModel": 1.0,
    "SD3Transformer2DModel": 1000.0,
}


def knows_timesteps(transformer: nn.Module) -> bool:
    """Whether scales of a model can change over the sampling steps."""
    return type(transformer).__name__ in _TIMESTEPS


def timestep_range(transformer: nn.Module) -> float:
    """Tell the largest timestep of a model, which is that of pure noise.

    Raises:
        UnsupportedModelError: it is not known for this class.
    """
    name = type(transformer).__name__
    if not knows_timesteps(transformer):
        raise UnsupportedModelError(
            f"Scales that change over the sampling steps are not known to work with {name}, only "
            f"with {', '.join(_TIMESTEPS)}. Use one knot."
        )
    return _TIMESTEPS[name]


def has_shift(pipe: Any) -> bool:
    """Whether the scheduler of a pipeline has a shift that is known."""
    return isinstance(getattr(pipe, "scheduler", None), FlowMatchEulerDiscreteScheduler)


def check_shift(pipe: Any) -> None:
    """Refuse a pipeline whose scheduler has no shift that is known.

    Raises:
        UnsupportedModelError: the scheduler is another than FlowMatchEulerDiscreteScheduler.
    """
    if not has_shift(pipe):
        scheduler = getattr(pipe, "scheduler", None)
        found = "no scheduler" if scheduler is None else f"a {type(scheduler).__name__}"
        raise UnsupportedModelError(
            f"A factor on the shift needs a pipeline with a FlowMatchEulerDiscreteScheduler; "
            f"{type(pipe).__name__} has {found}. Use one, or set space.shift to "
            "false."
        )
