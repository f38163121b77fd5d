"""What a pipeline can do beside having sites: embedded guidance, a known shift."""

from __future__ import annotations

from diffusers import FlowMatchEulerDiscreteScheduler
from torch import nn

from calibri.errors import UnsupportedModelError
from calibri.pipelines.pipeline import PipelineOrTransformer


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


def has_shift(pipe: PipelineOrTransformer) -> bool:
    """Whether the scheduler of a pipeline has a shift that is known."""
    return isinstance(getattr(pipe, "scheduler", None), FlowMatchEulerDiscreteScheduler)


def check_shift(pipe: PipelineOrTransformer) -> None:
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
