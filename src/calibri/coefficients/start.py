"""Start a search from a preset or another calibration: coarser, say, or at other guidance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from calibri.arrays import Vector
from calibri.coefficients.coefficients import Coefficients
from calibri.coefficients.presets import PRESETS, preset
from calibri.coefficients.space import SearchSpace
from calibri.config import GRANULARITIES
from calibri.errors import ConfigError
from calibri.pipelines import PipelineOrTransformer, Site


def warm_start(space: SearchSpace, sites: Sequence[Site], found: Coefficients) -> Vector:
    """Express coefficients in a search space.

    A block's value becomes that of its layers and gates, so that a search by block can start one by
    layer, and that one by gate. One set of scales serves several members and knots. Output weights
    keep their ratio to those of the uncalibrated model, whatever the guidance.

    Args:
        space: of the search to start.
        sites: of the transformer.
        found: coefficients of the same transformer.

    Returns:
        float64 (space.size,).

    Raises:
        ConfigError: the coefficients are finer than the space, have more members or knots or
            factors, or belong to another model.
    """
    names = _names(space, sites, found)
    original = space.coefficients(space.start)
    sets, ratios = _sets(found, space), _ratios(found, space)
    if not space.search_output and (ratios != 1.0).any():
        raise ConfigError(
            "The calibration to start from has output weights of its own, which this search does "
            "not have. Set space.output_weights to true."
        )
    if unsearched := [name for name in found.factors if name not in space.factors]:
        raise ConfigError(
            f"The calibration to start from has a factor on the {unsearched[0]}, which this search "
            f"does not have. Set space.{unsearched[0]} to true."
        )
    factors: dict[str, float] = {name: getattr(found, name) for name in space.factors}
    members = [
        replace(
            member,
            scales=tuple({name: knot[names[name]] for name in space.names} for knot in scales),
            output_weights=tuple(
                weight * float(ratio)
                for weight, ratio in zip(member.output_weights, row, strict=True)
            ),
        )
        for member, scales, row in zip(original.members, sets, ratios, strict=True)
    ]
    return space.vector(original.with_members(members, **factors))


def _names(space: SearchSpace, sites: Sequence[Site], found: Coefficients) -> dict[str, str]:
    """Names of the space to those of coefficients of the same model, as coarse or coarser."""
    order = GRANULARITIES.index
    if order(found.granularity) > order(space.granularity):
        raise ConfigError(
            f"A search by {space.granularity} cannot start from a calibration by "
            f"{found.granularity}, which is finer. Set space.granularity to {found.granularity}."
        )
    own = {s.parameter(space.granularity): s.parameter(found.granularity) for s in sites}
    if missing := sorted(set(own.values()) - found.scales[0].keys()):
        raise ConfigError(
            f"The calibration to start from has no scale for {', '.join(missing[:3])}: it belongs "
            "to another model."
        )
    if extra := sorted(found.scales[0].keys() - set(own.values())):
        raise ConfigError(
            f"The calibration to start from has scales that this model has no place for, "
            f"{', '.join(extra[:3])}: it belongs to another model."
        )
    return own


def _sets(found: Coefficients, space: SearchSpace) -> list[tuple[Mapping[str, float], ...]]:
    """The scales of each member of the space, knot by knot."""
    sets = [member.scales for member in found.members[: 1 if found.shares_scales else None]]
    if len(sets) not in (1, space.members) or found.knots not in (1, space.knots):
        raise ConfigError(
            f"The calibration to start from has {len(sets)} sets of scales with {found.knots} "
            f"knots, this search {space.members} with {space.knots}. Give the search as many, or "
            "start from one set."
        )
    spread = [knots * (space.knots if found.knots == 1 else 1) for knots in sets]
    return spread * (len(space.start_weights) if len(sets) == 1 else 1)


def _ratios(found: Coefficients, space: SearchSpace) -> Vector:
    """Output weights in units of the uncalibrated model's, (members, output knots) of the space."""
    if 0.0 in found.start_weights:
        raise ConfigError("An ensemble whose members start without weight cannot start a search.")
    members, knots = len(space.start_weights), space.output_knots
    ratios = np.array(
        [[weight / m.start_weight for weight in m.output_weights] for m in found.members]
    )
    if len(ratios) not in (1, members) or found.output_knots not in (1, knots):
        raise ConfigError(
            f"The calibration to start from has {len(ratios)} output weights with "
            f"{found.output_knots} knots, this search {members} with {knots}. Give the search as "
            "many (space.output_knots, space.members), or start from one."
        )
    return np.broadcast_to(ratios, (members, knots))


def preset_start(name: str, space: SearchSpace, pipe: PipelineOrTransformer) -> Vector | None:
    """Find the vector of a preset, which must lie in the space.

    Args:
        name: of a preset; anything else is none.
        space: of the search.
        pipe: what it is searched on.

    Raises:
        ConfigError: the preset lies outside of the space, or the model has none.
    """
    if name not in PRESETS:
        return None
    found = preset(
        name,
        pipe,
        guidance_scale=space.start_weights[0],  # 1 without guidance
        granularity=space.granularity,
    )
    original = space.coefficients(space.start)
    if (space.knots, space.output_knots) != (1, 1):
        raise ConfigError(
            f"The preset '{name}' has scales that do not change over the sampling steps. Set "
            "space.knots to 1 and space.output_knots to 1."
        )
    alike = (found.branches, len(found.scales)) == (original.branches, len(original.scales))
    if not alike or not space.search_output:
        count = found.member_branches.count(0)
        raise ConfigError(
            f"The preset '{name}' has members with scales of their own, {count} of them for "
            f"the prompt. Set space.members to {count}, space.output_weights to true and, "
            "under guidance, space.branches to 'separate'."
        )
    return space.vector(found)
