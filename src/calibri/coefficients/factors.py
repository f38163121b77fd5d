"""What a factor on the guidance or on the shift needs of a pipeline."""

from __future__ import annotations

from collections.abc import Iterable

from diffusers import FlowMatchEulerDiscreteScheduler

from calibri.coefficients.coefficients import Factor
from calibri.errors import UnsupportedModelError
from calibri.pipelines import Network, PipelineOrTransformer, networks_of


def check_factors(factors: Iterable[Factor], pipe: PipelineOrTransformer) -> None:
    """Refuse factors on what a pipeline does not have.

    Args:
        factors: those that are searched or that a calibration changes.
        pipe: a pipeline, or a bare transformer.

    Raises:
        UnsupportedModelError: it embeds no guidance, or its scheduler has no known shift.
    """
    if "guidance" in factors:
        for network in networks_of(pipe):
            _check_guidance(network)
    if "shift" in factors:
        _check_shift(pipe)


def _check_guidance(network: Network) -> None:
    if not network.embeds_guidance:
        name = type(network.transformer).__name__
        raise UnsupportedModelError(
            f"This {name} has no guidance embedded, so there is nothing for a factor on it to "
            "multiply. Under classifier-free guidance the output weights are "
            "the guidance: set space.guidance to false and space.output_weights to true."
        )


def has_shift(pipe: PipelineOrTransformer) -> bool:
    """Whether the scheduler of a pipeline has a shift that is known."""
    return isinstance(getattr(pipe, "scheduler", None), FlowMatchEulerDiscreteScheduler)


def _check_shift(pipe: PipelineOrTransformer) -> None:
    if not has_shift(pipe):
        scheduler = getattr(pipe, "scheduler", None)
        found = "no scheduler" if scheduler is None else f"a {type(scheduler).__name__}"
        raise UnsupportedModelError(
            f"A factor on the shift needs a pipeline with a FlowMatchEulerDiscreteScheduler; "
            f"{type(pipe).__name__} has {found}. Use one, or set space.shift to "
            "false."
        )
