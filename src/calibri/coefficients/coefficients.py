"""Named coefficients: the values a search finds and an artifact keeps, as plain data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar, get_args

import numpy as np
from pydantic import Field, FiniteFloat, NonNegativeFloat, PositiveFloat, PositiveInt

from calibri.arrays import Vector
from calibri.coefficients.columns import OUTPUT
from calibri.config import Granularity
from calibri.errors import CalibrationError
from calibri.pipelines import Site, parameter_names
from calibri.results import Record

Branch = Literal["conditional", "unconditional"]
Factor = Literal["guidance", "shift"]

BRANCHES: tuple[Branch, ...] = get_args(Branch)

Item = TypeVar("Item")


@dataclass(frozen=True)
class Member:
    """One term ``omega_i * f(x, t, y_i; s_i)`` of the sum that coefficients describe.

    Attributes:
        branch: y_i: ``"conditional"`` the prompt, ``"unconditional"`` the negative prompt.
        start_weight: omega_i of the uncalibrated model.
        output_weights: omega_i at each output knot of the trajectory; one when it is constant.
        scales: s_i at each knot of the trajectory, parameter name to scalar; one when constant.
    """

    branch: Branch
    start_weight: float
    output_weights: tuple[float, ...]
    scales: tuple[Mapping[str, float], ...]

    def with_strength(self, strength: float) -> Member:
        """Blend with the uncalibrated model: 0 is that model, 1 this member."""
        start = self.start_weight
        return replace(
            self,
            output_weights=tuple(start + strength * (w - start) for w in self.output_weights),
            scales=tuple(
                {name: 1.0 + strength * (value - 1.0) for name, value in knot.items()}
                for knot in self.scales
            ),
        )


class Coefficients(Record):
    """Scalars of a calibration: ``c = (omega, s)`` of the paper (spec section 1).

    They describe ``F(x, t) = sum_i omega_i * f(x, t, y_i; s_i)`` over the members i of an ensemble
    (spec section 2). The fields are what an artifact and a journal hold; ``members`` and
    ``from_members`` are what to work with.

    Attributes:
        granularity: how sites share a scalar.
        scales: one mapping of parameter name to scalar for each member, or one for all of them;
            with several knots, the knots of each in their order.
        output_weights: omega of each member. Without ``branches``: one without guidance,
            (conditional, unconditional) with it. With several output knots, the knots of each
            member in their order.
        start_weights: the output weight of each member in the uncalibrated model: (1, 0, ..), or
            (w, 1 - w, 0, ..) under guidance scale w.
        branches: the prompt y_i of each member: ``"conditional"`` the prompt, ``"unconditional"``
            the negative prompt; None when member i is branch i of guidance.
        knots: points of the trajectory, evenly spaced in the timestep from 0, the image, to its
            maximum, the noise. Scales are linear between them; with one they are constant.
        output_knots: the same for the output weights; where both have several, as many as
            ``knots``.
        guidance: factor on the guidance that the model embeds (FLUX.1-dev).
        shift: factor on the shift of the noise schedule of a flow-matching scheduler.
    """

    granularity: Granularity
    scales: tuple[dict[str, FiniteFloat], ...] = Field(min_length=1)
    output_weights: tuple[FiniteFloat, ...] = Field(min_length=1)
    start_weights: tuple[FiniteFloat, ...] = Field(min_length=1)
    branches: tuple[Branch, ...] | None = Field(None, min_length=1)
    knots: PositiveInt = 1
    output_knots: PositiveInt = 1
    guidance: NonNegativeFloat = Field(1.0, allow_inf_nan=False)
    shift: PositiveFloat = Field(1.0, allow_inf_nan=False)

    @classmethod
    def from_members(
        cls,
        members: Sequence[Member],
        granularity: Granularity,
        *,
        shared_scales: bool = False,
        guidance: float = 1.0,
        shift: float = 1.0,
    ) -> Coefficients:
        """Write members as coefficients; ``members`` reads them back.

        Args:
            members: alike in their numbers of knots and in the names of their scales.
            granularity: how sites share a scalar.
            shared_scales: keep the scales of the first member as those of all.
            guidance: factor on the embedded guidance.
            shift: factor on the shift of the noise schedule.

        Raises:
            ValidationError: there is no member, or a number is not finite.
        """
        branches = tuple(member.branch for member in members)
        return cls(
            granularity=granularity,
            branches=None if branches == BRANCHES[: len(branches)] else branches,
            start_weights=tuple(member.start_weight for member in members),
            guidance=guidance,
            shift=shift,
            **_flat(members, shared_scales),
        )

    def with_members(self, members: Sequence[Member], **update: Any) -> Coefficients:
        """Copy with other scales and output weights of the same members.

        Args:
            members: as many as there are, of the same branches and start weights.
            update: other fields to change.
        """
        return self.model_copy(update=_flat(members, self.shares_scales) | update)

    @property
    def members(self) -> tuple[Member, ...]:
        """The members of the ensemble, in their order; of coefficients without ``problems``."""
        sets = _by_knot(self.scales, self.knots)
        return tuple(
            Member(BRANCHES[branch], start, weights, scales)
            for branch, start, weights, scales in zip(
                self.member_branches,
                self.start_weights,
                _by_knot(self.output_weights, self.output_knots),
                sets * len(self.start_weights) if self.shares_scales else sets,
                strict=True,
            )
        )

    @property
    def shares_scales(self) -> bool:
        """Whether one set of scales serves all members; so it does where there is one member."""
        return len(self.scales) == self.knots

    @property
    def member_branches(self) -> tuple[int, ...]:
        """Branch of each member: 0 the conditional, 1 the unconditional."""
        if self.branches is None:
            return tuple(range(len(self.start_weights)))
        return tuple(BRANCHES.index(branch) for branch in self.branches)

    @property
    def num_branches(self) -> int:
        """Branches of one image: 1, or 2 under classifier-free guidance."""
        return max(self.member_branches) + 1

    @property
    def is_ensemble(self) -> bool:
        """Whether several members share a branch, so that it takes several forwards."""
        return len(self.start_weights) > self.num_branches

    @property
    def trajectory_knots(self) -> int:
        """Points of the trajectory at which anything is given; 1 when nothing changes over it."""
        return max(self.knots, self.output_knots)

    @property
    def per_branch(self) -> bool:
        """Whether one set of scales cannot serve every row of a forward."""
        multipliers = self._output_multipliers()
        # Far below what fp32 scales can tell apart; what is alike stays so at every strength.
        alike = np.isclose(multipliers, multipliers[0], rtol=1e-9, atol=1e-9).all()
        return self.is_ensemble or not self.shares_scales or not alike

    @property
    def factors(self) -> tuple[Factor, ...]:
        """What of the sampling itself these coefficients change."""
        values: dict[Factor, float] = {"guidance": self.guidance, "shift": self.shift}
        return tuple(name for name, value in values.items() if value != 1.0)

    @property
    def unfoldable(self) -> str:
        """Why one set of weights cannot hold these coefficients, in words; empty when it can."""
        members = len(self.start_weights)
        if self.trajectory_knots > 1:
            return (
                f"The scales of this calibration change over the sampling steps (it has "
                f"{self.trajectory_knots} knots), and weights cannot."
            )
        if self.is_ensemble:
            return (
                f"This calibration is the weighted sum of {members} members, each with its own "
                "scales, and one set of weights cannot be all of them."
            )
        if self.per_branch:
            return (
                "This calibration scales the conditional and the unconditional branch differently, "
                "and weights cannot."
            )
        if self.factors:
            return (
                f"This calibration changes the {' and the '.join(self.factors)} of the sampling, "
                "and weights cannot."
            )
        return ""

    def problems(self) -> Iterator[str]:
        """Say what contradicts itself, in words; nothing when the coefficients can be used."""
        members = len(self.start_weights)
        if len({frozenset(member) for member in self.scales}) > 1:
            yield "the members name different coefficients"
        if 1 < self.knots != self.output_knots > 1:
            yield f"scales have {self.knots} knots and output weights {self.output_knots}"
        if len(self.output_weights) != members * self.output_knots:
            yield (
                f"output_weights and start_weights differ in length: there are "
                f"{len(self.output_weights)} for {members} members and {self.output_knots} knots"
            )
        elif len(self.scales) not in (self.knots, members * self.knots):
            yield (
                f"there are {len(self.scales)} sets of scales for {members} members and "
                f"{self.knots} knots"
            )
        elif len(self.branches or self.start_weights[:2]) != members:
            yield f"branches must name the branch of each of the {members} members"
        elif "conditional" not in (self.branches or BRANCHES):
            yield "no member has the conditional branch"
        elif 0.0 in self._branch_weights():
            yield "the sum of a branch's start weight is zero"

    def _branch_weights(self) -> list[float]:
        """The weight of each branch in the pipeline's own guidance formula."""
        pairs = list(zip(self.member_branches, self.start_weights, strict=True))
        return [sum(w for b, w in pairs if b == branch) for branch in range(self.num_branches)]

    def _output_multipliers(self) -> Vector:
        """Factors on what each member returns, float64 (members, output knots)."""
        # The pipeline itself combines the branches with the start weights (guidance formula).
        branch_weights = np.array(self._branch_weights())[list(self.member_branches)]
        weights = np.array([member.output_weights for member in self.members])
        return np.asarray(weights / branch_weights[:, None])

    def with_strength(self, strength: float) -> Coefficients:
        """Blend with the original model: 0 is the original, 1 is the full calibration.

        Raises:
            CalibrationError: ``strength`` is outside [0, 1].
        """
        if not 0.0 <= strength <= 1.0:
            raise CalibrationError(
                f"Strength must lie between 0 (the original model) and 1 (the full calibration); "
                f"got {strength}."
            )
        return self.with_members(
            [member.with_strength(strength) for member in self.members],
            guidance=1.0 + strength * (self.guidance - 1.0),
            shift=1.0 + strength * (self.shift - 1.0),
        )

    def site_scales(self, sites: Sequence[Site]) -> Vector:
        """Expand to one scale per member and site; the output weight stands behind (``OUTPUT``).

        Returns:
            float64 (members, sites + 1), or (members, knots, sites + 1) with several knots.

        Raises:
            CalibrationError: the names do not match the sites.
        """
        self._check_names(sites)
        names = [site.parameter(self.granularity) for site in sites]
        scales = [[[knot[n] for n in names] for knot in member.scales] for member in self.members]
        table = np.empty((len(scales), self.trajectory_knots, len(names) + 1))
        table[..., :OUTPUT] = scales
        table[..., OUTPUT] = self._output_multipliers()
        return table if self.trajectory_knots > 1 else table[:, 0]

    def _check_names(self, sites: Sequence[Site]) -> None:
        expected = set(parameter_names(sites, self.granularity))
        for member in self.scales:
            missing, unknown = expected - set(member), set(member) - expected
            if missing or unknown:
                raise CalibrationError(
                    f"The calibration does not fit this transformer: it has {len(member)} "
                    f"coefficients, the model needs {len(expected)} at granularity "
                    f"'{self.granularity}' (missing {_few(missing)}, unknown {_few(unknown)}). "
                    "Load it onto the model it was made for."
                )


def _by_knot(values: Sequence[Item], knots: int) -> list[tuple[Item, ...]]:
    """Cut what lists the knots of each member in their order."""
    return [tuple(values[first : first + knots]) for first in range(0, len(values), knots)]


def _flat(members: Sequence[Member], shared_scales: bool) -> dict[str, Any]:
    """The fields that list the knots of each member in their order."""
    own = members[:1] if shared_scales else members
    return {
        "scales": tuple(dict(knot) for member in own for knot in member.scales),
        "output_weights": tuple(w for member in members for w in member.output_weights),
        "knots": len(members[0].scales) if members else 1,
        "output_knots": len(members[0].output_weights) if members else 1,
    }


def _few(names: set[str]) -> str:
    shown = sorted(names)[:3]
    return ", ".join(shown) + (f" and {len(names) - 3} more" if len(names) > 3 else "") or "none"
