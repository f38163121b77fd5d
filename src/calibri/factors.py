"""What of a pipeline is searched, the factors on the sampling itself among it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from calibri.coefficients import Factor
from calibri.config import RunConfig
from calibri.presets import PRESETS
from calibri.scaling import check_embedded_guidance, knows_timesteps
from calibri.schedules import check_shift, has_shift
from calibri.search_space import SearchSpace
from calibri.sites import networks_of, sites_of


def settle(config: RunConfig, pipe: Any, guidance_scale: float) -> RunConfig:
    """Fill in what of the search space was left open, by what a pipeline can do.

    Args:
        config: of the run.
        pipe: its pipeline.
        guidance_scale: w of classifier-free guidance; at most 1 means none.
    """
    # A preset is a point of the paper's space.
    is_preset = config.space.start in PRESETS
    knows = all(knows_timesteps(network.transformer) for network in networks_of(pipe))
    return config.settled(
        guidance_scale,
        timesteps_known=knows and not is_preset,
        shift_known=has_shift(pipe) and not is_preset,
    )


def lay_out(config: RunConfig, pipe: Any, guidance_scale: float) -> SearchSpace:
    """Lay out the search of a run over the sites of its pipeline; arguments as for ``settle``.

    Raises:
        ConfigError: see ``SearchSpace.build``.
        UnsupportedModelError: see ``check_factors``.
    """
    settled = settle(config, pipe, guidance_scale)
    space = settled.space.build(sites_of(networks_of(pipe)), guidance_scale)
    check_factors(space.factors, pipe)
    return space


def check_factors(factors: Iterable[Factor], pipe: Any) -> None:
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
