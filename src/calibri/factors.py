"""What of a pipeline is searched, the factors on the sampling itself among it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from calibri.coefficients import Factor
from calibri.config import RunConfig
from calibri.scaling import check_embedded_guidance, knows_timesteps
from calibri.schedules import check_shift, has_shift
from calibri.search_space import SearchSpace
from calibri.sites import networks_of, sites_of


def lay_out(config: RunConfig, pipe: Any, guidance_scale: float) -> SearchSpace:
    """Lay out the search of a run over the sites of its pipeline.

    Args:
        config: of the run.
        pipe: its pipeline.
        guidance_scale: w of classifier-free guidance; at most 1 means none.

    Raises:
        ConfigError: see ``SearchSpace.build``.
        UnsupportedModelError: see ``check_factors``.
    """
    networks = networks_of(pipe)
    # The paper's loop searches what the paper does.
    is_open = guidance_scale > 1.0 and config.search.method != "reference"
    has_gradient = config.search.method == "gradient"  # which factors have not
    settled = config.space.settled(
        timesteps_known=is_open and all(knows_timesteps(n.transformer) for n in networks),
        shift_known=is_open and not has_gradient and has_shift(pipe),
    )
    space = settled.build(sites_of(networks), guidance_scale)
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
