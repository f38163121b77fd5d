"""What a configuration leaves open about the search, resolved once by what a pipeline can do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from calibri.coefficients.factors import has_shift
from calibri.coefficients.presets import PRESETS
from calibri.coefficients.space import SearchSpace
from calibri.config import RunConfig, SpaceConfig
from calibri.pipelines import (
    PipelineOrTransformer,
    Site,
    networks_of,
    sites_of,
)


@dataclass(frozen=True)
class Capabilities:
    """What a pipeline has, as far as a search depends on it.

    Attributes:
        sites: of its transformers.
        guidance_scale: w of classifier-free guidance as it is sampled; 1 without.
        timesteps_known: whether scales and output weights can change over the steps.
        shift_known: whether its scheduler has a shift.
    """

    sites: tuple[Site, ...]
    guidance_scale: float
    timesteps_known: bool
    shift_known: bool

    @classmethod
    def of(cls, pipe: PipelineOrTransformer, guidance_scale: float) -> Capabilities:
        """Look at a loaded pipeline.

        Args:
            pipe: a diffusers pipeline.
            guidance_scale: w of classifier-free guidance; at most 1 means none.
        """
        networks = networks_of(pipe)
        return cls(
            sites=sites_of(networks),
            guidance_scale=guidance_scale,
            timesteps_known=all(network.knows_timesteps for network in networks),
            shift_known=has_shift(pipe),
        )


class ResolvedSpace(SpaceConfig):
    """Which scalars are searched, nothing left open."""

    output_knots: int
    shift: bool


class ResolvedConfig(RunConfig):
    """The configuration of a run on its pipeline; a run keeps it, workers and plans read it."""

    space: ResolvedSpace


def resolve(config: RunConfig, capabilities: Capabilities) -> ResolvedConfig:
    """Resolve what a configuration leaves open: it is searched where that pays.

    Under classifier-free guidance a guidance that changes over the trajectory and the shift of the
    schedule gain more than all constant scales together (docs/search.md). Ensembles, scales with
    knots of their own, searches without output weights and presets, which are points of the paper's
    space, stay as they are; so does the paper's procedure.

    Args:
        config: of a run.
        capabilities: of its pipeline.
    """
    space, method = config.space, config.search.method_info
    pays = (
        capabilities.guidance_scale > 1.0
        and not method.papers_space
        and space.members == space.knots == 1
        and space.output_weights
        and space.start not in PRESETS
    )
    # The factor on the shift has no gradient.
    shift_pays = pays and capabilities.shift_known and not method.uses_gradients
    found: dict[str, Any] = space.model_dump()
    if space.output_knots is None:
        found["output_knots"] = 2 if pays and capabilities.timesteps_known else 1
    if space.shift is None:
        found["shift"] = shift_pays
    kept = {name: getattr(config, name) for name in RunConfig.model_fields}
    return ResolvedConfig(**kept | {"space": ResolvedSpace(**found)})


def build_space(config: ResolvedConfig, capabilities: Capabilities) -> SearchSpace:
    """Build the space of a search over the sites of a pipeline.

    Raises:
        ConfigError: see ``SearchSpace.build``.
    """
    space = config.space
    return SearchSpace.build(
        capabilities.sites,
        space.granularity,
        guidance_scale=capabilities.guidance_scale,
        branches=space.branches,
        search_output=space.output_weights,
        members=space.members,
        knots=space.knots,
        output_knots=space.output_knots,
        search_guidance=space.guidance,
        search_shift=space.shift,
    )
