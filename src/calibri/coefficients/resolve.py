"""What of a pipeline is searched, the factors on the sampling itself among it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from calibri.coefficients.coefficients import Factor
from calibri.coefficients.presets import PRESETS
from calibri.coefficients.space import SearchSpace
from calibri.config import RunConfig, SpaceConfig
from calibri.pipelines import (
    PipelineOrTransformer,
    Site,
    check_embedded_guidance,
    check_shift,
    has_shift,
    knows_timesteps,
    networks_of,
    sites_of,
)


def settle(config: RunConfig, pipe: PipelineOrTransformer, guidance_scale: float) -> RunConfig:
    """Fill in what of the search space was left open, by what a pipeline can do.

    Args:
        config: of the run.
        pipe: its pipeline.
        guidance_scale: w of classifier-free guidance; at most 1 means none.
    """
    # A preset is a point of the paper's space.
    is_preset = config.space.start in PRESETS
    networks = networks_of(pipe)
    knows = all(knows_timesteps(network.transformer, network.scheduler) for network in networks)
    return config.settled(
        guidance_scale,
        timesteps_known=knows and not is_preset,
        shift_known=has_shift(pipe) and not is_preset,
    )


def lay_out(config: RunConfig, pipe: PipelineOrTransformer, guidance_scale: float) -> SearchSpace:
    """Lay out the search of a run over the sites of its pipeline; arguments as for ``settle``.

    Raises:
        ConfigError: see ``SearchSpace.build``.
        UnsupportedModelError: see ``check_factors``.
    """
    settled = settle(config, pipe, guidance_scale)
    space = build_space(settled.space, sites_of(networks_of(pipe)), guidance_scale)
    check_factors(space.factors, pipe)
    return space


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
            check_embedded_guidance(network.transformer)
    if "shift" in factors:
        check_shift(pipe)


def build_space(config: SpaceConfig, sites: Sequence[Site], guidance_scale: float) -> SearchSpace:
    """Lay out a search over the sites of a pipeline.

    Args:
        config: what is searched.
        sites: of its transformers.
        guidance_scale: w of classifier-free guidance; at most 1 means none.

    Raises:
        ConfigError: see ``SearchSpace.build``.
    """
    return SearchSpace.build(
        sites,
        config.granularity,
        guidance_scale=guidance_scale,
        branches=config.branches,
        search_output=config.output_weights,
        members=config.members,
        knots=config.knots,
        output_knots=config.output_knots or 1,
        search_guidance=config.guidance,
        search_shift=bool(config.shift),
    )
