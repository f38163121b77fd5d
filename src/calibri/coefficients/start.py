"""Start a search from another calibration: of the same model, or coarser, or at other guidance."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from calibri.arrays import Vector
from calibri.coefficients.coefficients import Coefficients
from calibri.coefficients.space import SearchSpace
from calibri.errors import ConfigError
from calibri.pipelines import GRANULARITIES, Site, parameter_name


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
    order = GRANULARITIES.index
    if order(found.granularity) > order(space.granularity):
        raise ConfigError(
            f"A search by {space.granularity} cannot start from a calibration by "
            f"{found.granularity}, which is finer. Set space.granularity to {found.granularity}."
        )
    own = {
        parameter_name(s, space.granularity): parameter_name(s, found.granularity) for s in sites
    }
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
    members = _spread(found, space.members, space.knots)
    scales = tuple({name: scales[own[name]] for name in space.names} for scales in members)
    original = space.coefficients(space.start)
    ratios = _ratios(found, len(space.start_weights), space.output_knots)
    weights = [w * ratio for w, ratio in zip(original.start_output_weights, ratios, strict=True)]
    if not space.search_output and any(ratio != 1.0 for ratio in ratios):
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
    update = {"scales": scales, "output_weights": tuple(weights), **factors}
    return space.vector(original.model_copy(update=update))


def _spread(found: Coefficients, members: int, knots: int) -> list[dict[str, float]]:
    """One set of scales for each member and knot of the space."""
    sets = len(found.scales) // found.knots
    if sets not in (1, members) or found.knots not in (1, knots):
        raise ConfigError(
            f"The calibration to start from has {sets} sets of scales with {found.knots} knots, "
            f"this search {members} with {knots}. Give the search as many, or start from one set."
        )
    return [
        found.scales[(member if sets > 1 else 0) * found.knots + (knot if found.knots > 1 else 0)]
        for member in range(members)
        for knot in range(knots)
    ]


def _ratios(found: Coefficients, members: int, knots: int) -> list[float]:
    """Output weights in units of the uncalibrated model's, for each member and knot of a space."""
    if 0.0 in found.start_weights:
        raise ConfigError("An ensemble whose members start without weight cannot start a search.")
    pairs = zip(found.output_weights, found.start_output_weights, strict=True)
    ratios = np.reshape([weight / start for weight, start in pairs], (-1, found.output_knots))
    if len(ratios) not in (1, members) or found.output_knots not in (1, knots):
        raise ConfigError(
            f"The calibration to start from has {len(ratios)} output weights with "
            f"{found.output_knots} knots, this search {members} with {knots}. Give the search as "
            "many (space.output_knots, space.members), or start from one."
        )
    return [float(ratio) for ratio in np.broadcast_to(ratios, (members, knots)).flatten()]
