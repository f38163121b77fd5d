"""Named coefficients: the values a search finds and an artifact keeps, as plain data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, get_args

import numpy as np
from pydantic import Field, FiniteFloat, NonNegativeFloat, PositiveFloat, PositiveInt

from calibri.arrays import Vector
from calibri.config import Granularity
from calibri.errors import CalibrationError
from calibri.pipelines import Site, parameter_name, parameter_names
from calibri.results import Record

Branch = Literal["conditional", "unconditional"]
Factor = Literal["guidance", "shift"]

BRANCHES: tuple[Branch, ...] = get_args(Branch)


class Coefficients(Record):
    """Scalars of a calibration: ``c = (omega, s)`` of the paper (spec section 1).

    They describe ``F(x, t) = sum_i omega_i * f(x, t, y_i; s_i)`` over the members i of an ensemble
    (spec section 2).

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
        own = len(self.scales) > self.knots
        return own or bool((multipliers != multipliers[0]).any()) or self.is_ensemble

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
        weights = np.reshape(self.output_weights, (len(self.start_weights), self.output_knots))
        return np.asarray(weights / branch_weights[:, None])

    @property
    def start_output_weights(self) -> tuple[float, ...]:
        """The output weights of the uncalibrated model, as many as ``output_weights``."""
        return tuple(w for w in self.start_weights for _ in range(self.output_knots))

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
        weights = zip(self.output_weights, self.start_output_weights, strict=True)
        return self.model_copy(
            update={
                "scales": tuple(
                    {name: 1.0 + strength * (value - 1.0) for name, value in member.items()}
                    for member in self.scales
                ),
                "output_weights": tuple(start + strength * (w - start) for w, start in weights),
                "guidance": 1.0 + strength * (self.guidance - 1.0),
                "shift": 1.0 + strength * (self.shift - 1.0),
            }
        )

    def site_scales(self, sites: Sequence[Site]) -> Vector:
        """Expand to one scale per member and site, output last.

        Returns:
            float64 (members, sites + 1), or (members, knots, sites + 1) with several knots.

        Raises:
            CalibrationError: the names do not match the sites.
        """
        self._check_names(sites)
        rows = [
            [member[parameter_name(site, self.granularity)] for site in sites]
            for member in self.scales
        ]
        shape = (len(self.start_weights), self.trajectory_knots)
        scales = np.reshape(np.array(rows), (-1, self.knots, len(sites)))
        outputs = self._output_multipliers()[:, :, None]
        table = np.concatenate(
            [np.broadcast_to(scales, (*shape, len(sites))), np.broadcast_to(outputs, (*shape, 1))],
            axis=2,
        )
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


def _few(names: set[str]) -> str:
    shown = sorted(names)[:3]
    return ", ".join(shown) + (f" and {len(names) - 3} more" if len(names) > 3 else "") or "none"
