"""Where a search starts in a space of coefficients, how far it may go, and along what it steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from calibri.arrays import Vector
from calibri.coefficients import SearchSpace
from calibri.config import RunConfig, SearchConfig
from calibri.errors import ConfigError
from calibri.runs.session import Session
from calibri.search import MethodInfo, SearchMethod, Setup


def make_search(
    space: SearchSpace,
    config: RunConfig,
    start: Vector | None = None,
    *,
    method: MethodInfo | None = None,
    basis: NDArray[np.float64] | None = None,
) -> SearchMethod:
    """Start a search (spec section 3).

    Args:
        space: of the coefficients.
        config: of the run.
        start: first vector, float64 (n,); None for the original model.
        method: None for the configured one.
        basis: columns are the first steps, float64 (n, n); None for ``search_basis``, or for the
            identity with a method that has plain steps.
    """
    search = config.search
    info = method or search.method_info
    start = space.start if start is None else start
    if info.uses_gradients:
        start = wake_members(space, start)
    if basis is None:
        basis = np.eye(space.size) if info.plain_basis else search_basis(space)
    return info.make(
        Setup(
            start=start,
            basis=basis,
            bounds=search_bounds(space, search),
            seed=config.seed,
            popsize=search.popsize or info.popsize(space.size),
            sigma0=search.sigma0,
            learning_rate=search.learning_rate,
            tail=search.tail,
        )
    )


def wake_members(space: SearchSpace, start: Vector) -> Vector:
    """Give members without weight that are alike the first of their branch a small negative one.

    The first has as much more, so that the sum is the same. The scales of a member without weight
    have no gradient. With a positive one they would have that of the first, and steps of Adam do
    not depend on its size: both would stay alike. With a negative one they go the other way, and
    the sum goes beyond the better one, as in autoguidance (Karras et al. 2024, arXiv 2406.02507).
    """
    coefficients = space.coefficients(start)
    first, *further = coefficients.members
    members, moved = [first], 0.0
    for member in further:
        is_silent = member.branch == first.branch and not any(member.output_weights)
        if is_silent and member.scales == first.scales:
            moved += _AWAKE * first.start_weight
            asleep = (-_AWAKE * first.start_weight,) * len(member.output_weights)
            member = replace(member, output_weights=asleep)
        members.append(member)
    members[0] = replace(first, output_weights=tuple(w + moved for w in first.output_weights))
    return space.vector(coefficients.with_members(members)) if moved else start


def search_bounds(space: SearchSpace, config: SearchConfig) -> NDArray[np.float64]:
    """Lowest and highest value of every entry of a vector, (n, 2)."""
    return space.bounds(config.scale_bounds, config.output_bounds)


def check_start(session: Session) -> None:
    """Refuse bounds that leave out where a search starts or the original model.

    Raises:
        ConfigError: names the entry and the setting.
    """
    space = session.space
    low, high = search_bounds(space, session.config.search).T
    for vector in (space.start, session.start):
        # A little more, since a warm start multiplies and divides by the original's weights.
        outside = np.flatnonzero((vector < low - 1e-9) | (vector > high + 1e-9))
        if len(outside):
            i = outside[0]
            setting = "output_bounds" if space.is_output[i] else "scale_bounds"
            raise ConfigError(
                f"The search starts with {space.labels[i]} = {vector[i]:g}, outside of "
                f"{low[i]:g} to {high[i]:g}. Widen search.{setting}, or start elsewhere."
            )


# Weight of a member that begins to count, in units of the first's.
_AWAKE = 0.05
# Steps along the trajectory cancel in part, and what is found there is far away (docs/search.md).
_TRAJECTORY_STEP = 4.0
# A step of the shift's factor that changes the images about as much as a step of 1 of all gates.
_FACTOR_STEPS = {"guidance": 2.0, "shift": 4.0}
# Candidates that share a shift.
_SHARING = 8


def search_basis(space: SearchSpace) -> NDArray[np.float64]:
    """Columns in which a step of the same length changes the images about as much.

    A gate is its own column. Guidance w amplifies what tells its branches apart, so that gates take
    shorter steps under it (docs/search.md). The two output weights nearly cancel there, so that a
    step of one alone changes the scale of the prediction by a multiple of itself. Their columns are
    what they mean: the scale of the prediction, along (w, 1 - w), and the guidance, along (1, -1);
    in an ensemble one column of the latter kind for each further member. With several output knots
    each of these has a column for its mean over the trajectory and others for how it changes.
    """
    w = max(1.0, space.start_weights[0])
    basis = np.eye(space.size) / w
    if space.search_output:
        outputs = np.flatnonzero(space.is_output)
        modes = np.kron(_output_directions(space), _trajectory_modes(space.output_knots))
        basis[np.ix_(outputs, outputs)] = modes
    for name in space.factors:
        place = space.labels.index(name)
        basis[place, place] = _FACTOR_STEPS[name]
    return basis


def _output_directions(space: SearchSpace) -> NDArray[np.float64]:
    """Columns for the output weights of the members at one point of the trajectory."""
    count, w = len(space.start_weights), max(1.0, space.start_weights[0])
    directions = -math.sqrt(w) * np.eye(count)
    directions[0] = math.sqrt(w)
    directions[:, 0] = np.array(space.start_weights) / w
    return directions


def _trajectory_modes(knots: int) -> NDArray[np.float64]:
    """Columns over the knots: a constant one, then cosines that change ever faster."""
    place = np.arange(knots) / max(1, knots - 1)
    modes = _TRAJECTORY_STEP * np.cos(math.pi * place[:, None] * np.arange(knots))
    modes[:, 0] = 1.0
    return np.asarray(modes)


def share_shifts(space: SearchSpace, candidates: Sequence[Vector]) -> list[Vector]:
    """Let neighbours in the shift of the schedule share their mean, since a batch has one schedule.

    With groups of 8 the shifts of a large population still vary nearly as they were drawn, and
    batches are 8 times as large where a candidate has few images, as at the start of a race. Of a
    small one too few shifts would be left to choose among.

    Returns:
        The candidates in the order of their shifts; as they were where no shift is searched or
        they are fewer than 24.
    """
    if "shift" not in space.factors or len(candidates) < 3 * _SHARING:
        return list(candidates)
    place = space.labels.index("shift")
    table = np.array(sorted(candidates, key=lambda vector: float(vector[place])))
    for group in np.array_split(table, len(table) // _SHARING):
        group[:, place] = group[:, place].mean()
    return list(table)
