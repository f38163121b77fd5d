"""Named coefficients: the values a search finds and an artifact keeps.

``Coefficients`` are plain data. ``SearchSpace`` ties them to the sites of one transformer: from the
flat vector of the search to named values, and from named values to one scale per branch and site.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, FiniteFloat, NonNegativeFloat, PositiveFloat, PositiveInt

from calibri.errors import CalibrationError, ConfigError
from calibri.results import Record
from calibri.sites import Site

Granularity = Literal["block", "layer", "gate"]
Branches = Literal["shared", "separate"]
Branch = Literal["conditional", "unconditional"]
Factor = Literal["guidance", "shift"]
Vector = NDArray[np.float64]

GRANULARITIES: tuple[Granularity, ...] = get_args(Granularity)
BRANCHES: tuple[Branch, ...] = get_args(Branch)

# From no guidance to three times what the model is served with; a shift is positive.
FACTOR_BOUNDS: dict[Factor, tuple[float, float]] = {"guidance": (0.0, 3.0), "shift": (0.2, 5.0)}


def parameter_name(site: Site, granularity: Granularity) -> str:
    """Name the coefficient that scales a site: its block, its layer in the block, or itself."""
    if granularity == "block":
        return site.block
    return f"{site.block}.{site.layer}" if granularity == "layer" else site.name


def parameter_names(sites: Iterable[Site], granularity: Granularity) -> tuple[str, ...]:
    """List the distinct coefficient names of a granularity, in the order of the sites."""
    return tuple(dict.fromkeys(parameter_name(site, granularity) for site in sites))


class Coefficients(Record):
    """Scalars of a calibration: ``c = (omega, s)`` of the paper (spec section 1).

    They describe ``F(x, t) = sum_i omega_i * f(x, t, y_i; s_i)`` over the members i of an ensemble
    (spec section 2).

    Attributes:
        granularity: how sites share a scalar.
        scales: one mapping of parameter name to scalar for each member, or one for all of them;
            with several knots, the knots of each in their order.
        output_weights: omega of each member. Without ``branches``: one without guidance,
            (conditional, unconditional) with it.
        start_weights: the output weights of the uncalibrated model: (1, 0, ..), or
            (w, 1 - w, 0, ..) under guidance scale w.
        branches: the prompt y_i of each member: ``"conditional"`` the prompt, ``"unconditional"``
            the negative prompt; None when member i is branch i of guidance.
        knots: points of the trajectory, evenly spaced in the timestep from 0, the image, to its
            maximum, the noise. Scales are linear between them; with one they are constant.
        guidance: factor on the guidance that the model embeds (FLUX.1-dev).
        shift: factor on the shift of the noise schedule of a flow-matching scheduler.
    """

    granularity: Granularity
    scales: tuple[dict[str, FiniteFloat], ...] = Field(min_length=1)
    output_weights: tuple[FiniteFloat, ...] = Field(min_length=1)
    start_weights: tuple[FiniteFloat, ...] = Field(min_length=1)
    branches: tuple[Branch, ...] | None = Field(None, min_length=1)
    knots: PositiveInt = 1
    guidance: NonNegativeFloat = Field(1.0, allow_inf_nan=False)
    shift: PositiveFloat = Field(1.0, allow_inf_nan=False)

    @property
    def member_branches(self) -> tuple[int, ...]:
        """Branch of each member: 0 the conditional, 1 the unconditional."""
        if self.branches is None:
            return tuple(range(len(self.output_weights)))
        return tuple(BRANCHES.index(branch) for branch in self.branches)

    @property
    def num_branches(self) -> int:
        """Branches of one image: 1, or 2 under classifier-free guidance."""
        return max(self.member_branches) + 1

    @property
    def is_ensemble(self) -> bool:
        """Whether several members share a branch, so that it takes several forwards."""
        return len(self.output_weights) > self.num_branches

    @property
    def per_branch(self) -> bool:
        """Whether one set of scales cannot serve every row of a forward."""
        multipliers = self._output_multipliers()
        own = len(self.scales) > self.knots
        return own or len(set(multipliers)) > 1 or self.is_ensemble

    @property
    def factors(self) -> tuple[Factor, ...]:
        """What of the sampling itself these coefficients change."""
        values: dict[Factor, float] = {"guidance": self.guidance, "shift": self.shift}
        return tuple(name for name, value in values.items() if value != 1.0)

    @property
    def unfoldable(self) -> str:
        """Why one set of weights cannot hold these coefficients, in words; empty when it can."""
        members = len(self.output_weights)
        if self.knots > 1:
            return (
                f"The scales of this calibration change over the sampling steps (it has "
                f"{self.knots} knots), and weights cannot."
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
        members = len(self.output_weights)
        if len({frozenset(member) for member in self.scales}) > 1:
            yield "the members name different coefficients"
        if len(self.start_weights) != members:
            yield "output_weights and start_weights differ in length"
        elif len(self.scales) not in (self.knots, members * self.knots):
            yield (
                f"there are {len(self.scales)} sets of scales for {members} output weights and "
                f"{self.knots} knots"
            )
        elif len(self.branches or self.output_weights[:2]) != members:
            yield f"branches must name the branch of each of the {members} members"
        elif "conditional" not in (self.branches or BRANCHES):
            yield "no member has the conditional branch"
        elif 0.0 in self._branch_weights():
            yield "the sum of a branch's start weight is zero"

    def _branch_weights(self) -> list[float]:
        """The weight of each branch in the pipeline's own guidance formula."""
        pairs = list(zip(self.member_branches, self.start_weights, strict=True))
        return [sum(w for b, w in pairs if b == branch) for branch in range(self.num_branches)]

    def _output_multipliers(self) -> list[float]:
        # The pipeline itself combines the branches with the start weights (guidance formula).
        branch_weights = self._branch_weights()
        pairs = zip(self.output_weights, self.member_branches, strict=True)
        return [weight / branch_weights[branch] for weight, branch in pairs]

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
        weights = zip(self.output_weights, self.start_weights, strict=True)
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
        shape = (len(self.output_weights), self.knots)
        scales = np.reshape(np.array(rows), (-1, self.knots, len(sites)))
        outputs = np.array(self._output_multipliers())[:, None, None]
        table = np.concatenate(
            [np.broadcast_to(scales, (*shape, len(sites))), np.broadcast_to(outputs, (*shape, 1))],
            axis=2,
        )
        return table if self.knots > 1 else table[:, 0]

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


@dataclass(frozen=True)
class SearchSpace:
    """The parametrisation of one search: flat vector <-> named coefficients.

    The vector lists the scales of each member (member outermost), then the output weights, then
    the factors on the embedded guidance and on the scheduler's shift.

    Attributes:
        names: coefficient names at the granularity, without members.
        granularity: how sites share a coefficient.
        members: sets of scales: 1, or one for each member of the ensemble.
        start_weights: output weights of the uncalibrated model, one per member.
        search_output: whether the output weights are searched or stay at their start.
        branches: prompt of each member, see ``Coefficients``.
        knots: points of the trajectory that have scales of their own, see ``Coefficients``.
        search_guidance: whether the factor on the embedded guidance is searched.
        search_shift: whether the factor on the scheduler's shift is searched.
    """

    names: tuple[str, ...]
    granularity: Granularity
    members: int = 1
    start_weights: tuple[float, ...] = (1.0,)
    search_output: bool = True
    branches: tuple[Branch, ...] | None = None
    knots: int = 1
    search_guidance: bool = False
    search_shift: bool = False

    @classmethod
    def build(
        cls,
        sites: Sequence[Site],
        granularity: Granularity,
        *,
        guidance_scale: float = 1.0,
        branches: Branches = "shared",
        search_output: bool = True,
        members: int = 1,
        knots: int = 1,
        search_guidance: bool = False,
        search_shift: bool = False,
    ) -> SearchSpace:
        """Lay out a search over the sites of a transformer.

        Args:
            sites: residual-branch sites, without the output site.
            granularity: how sites share a coefficient.
            guidance_scale: w of classifier-free guidance; at most 1 means none.
            branches: one set of scales for both branches of guidance, or one set for each.
            search_output: search the output weights too.
            members: members of the ensemble that see the prompt, each with its own scales; under
                guidance the negative prompt has one more.
            knots: points of the trajectory that have scales of their own; 1 is the paper's.
            search_guidance: search a factor on the embedded guidance too.
            search_shift: search a factor on the scheduler's shift too.

        Raises:
            ConfigError: separate branches are asked for without guidance, or several members
                under guidance without them.
        """
        guided = guidance_scale > 1.0
        if members > 1 and guided and branches == "shared":
            raise ConfigError(
                f"An ensemble of {members} members under guidance needs scales of its own for the "
                "negative prompt. Set space.branches to 'separate', or guidance_scale to 1."
            )
        if branches == "separate" and not guided:
            raise ConfigError(
                f"Separate coefficients per branch need classifier-free guidance, but "
                f"guidance_scale is {guidance_scale}. Raise it above 1 or use shared branches."
            )
        more = members - 1
        own: tuple[Branch, ...] = BRANCHES if guided else ("conditional",)
        start = (guidance_scale, 1.0 - guidance_scale) if guided else (1.0,)
        return cls(
            names=parameter_names(sites, granularity),
            granularity=granularity,
            members=more + (2 if branches == "separate" else 1),
            start_weights=(*start, *[0.0] * more),
            search_output=search_output,
            branches=(*own, *BRANCHES[:1] * more) if more else None,
            knots=knots,
            search_guidance=search_guidance,
            search_shift=search_shift,
        )

    @property
    def num_scales(self) -> int:
        """Entries of the flat vector that are scales."""
        return self.members * self.knots * len(self.names)

    @property
    def num_outputs(self) -> int:
        """Entries of the flat vector that are output weights."""
        return len(self.start_weights) if self.search_output else 0

    @property
    def factors(self) -> tuple[Factor, ...]:
        """The entries of the flat vector behind the output weights."""
        searched: dict[Factor, bool] = {
            "guidance": self.search_guidance,
            "shift": self.search_shift,
        }
        return tuple(name for name, is_searched in searched.items() if is_searched)

    @property
    def member_names(self) -> tuple[str, ...]:
        """What distinguishes the sets of scales; one empty name when all members share a set."""
        return tuple(prefix.rstrip("/") for prefix in self._prefixes) if self.members > 1 else ("",)

    @property
    def size(self) -> int:
        """Length of the flat vector."""
        return len(self.labels)

    @property
    def labels(self) -> tuple[str, ...]:
        """Name of every entry of the flat vector."""
        prefixes = self._prefixes
        own = prefixes if self.members > 1 else [""]
        knots = [f"@{knot}" for knot in range(self.knots)] if self.knots > 1 else [""]
        scales = [p + name + knot for p in own for knot in knots for name in self.names]
        weights = [f"{prefix}output" for prefix in prefixes] if self.search_output else []
        return (*scales, *weights, *self.factors)

    @property
    def _prefixes(self) -> list[str]:
        if len(self.start_weights) == 1:
            return [""]
        branches = self.branches or BRANCHES
        if len(set(branches)) == 1:
            return [f"member{i + 1}/" for i in range(len(branches))]
        # The first of a branch bears its name alone, as it does without further members.
        counts = [branches[:i].count(branch) for i, branch in enumerate(branches)]
        return [
            f"{branch}{count + 1 if count else ''}/"
            for branch, count in zip(branches, counts, strict=True)
        ]

    @property
    def start(self) -> Vector:
        """The original model as a vector: ones, and the start weights among them."""
        outputs = self.start_weights if self.search_output else ()
        return np.array([1.0] * self.num_scales + [*outputs] + [1.0] * len(self.factors))

    @property
    def is_output(self) -> NDArray[np.bool_]:
        """Which entries of the vector are output weights."""
        places = np.arange(self.size) - self.num_scales
        return (places >= 0) & (places < self.num_outputs)

    def bounds(
        self, scale_bounds: tuple[float, float], output_bounds: tuple[float, float]
    ) -> NDArray[np.float64]:
        """Give the allowed range of every entry of the vector: float64 (size, 2)."""
        factors = [FACTOR_BOUNDS[name] for name in self.factors]
        return np.array(
            [scale_bounds] * self.num_scales + [output_bounds] * self.num_outputs + factors
        )

    def coefficients(self, vector: Vector | Sequence[float]) -> Coefficients:
        """Name the entries of a flat vector (float64, shape (size,)).

        Raises:
            CalibrationError: the vector has another length.
        """
        values = [float(value) for value in vector]
        if len(values) != self.size:
            raise CalibrationError(
                f"The vector has {len(values)} entries, this search space has {self.size} "
                f"({self.num_scales} scales, {self.num_outputs} output weights, "
                f"{len(self.factors)} factors)."
            )
        step = len(self.names)
        scales = [
            dict(zip(self.names, values[m * step : (m + 1) * step], strict=True))
            for m in range(self.members * self.knots)
        ]
        after = self.num_scales + self.num_outputs
        weights = values[self.num_scales : after] if self.search_output else self.start_weights
        return Coefficients(
            granularity=self.granularity,
            scales=tuple(scales),
            output_weights=tuple(weights),
            start_weights=self.start_weights,
            branches=self.branches,
            knots=self.knots,
            **dict(zip(self.factors, values[after:], strict=True)),
        )

    def vector(self, coefficients: Coefficients) -> Vector:
        """Flatten coefficients of this space; the inverse of ``coefficients``."""
        scales = [member[name] for member in coefficients.scales for name in self.names]
        outputs = coefficients.output_weights if self.search_output else ()
        factors = [getattr(coefficients, name) for name in self.factors]
        return np.array([*scales, *outputs, *factors])

    def named(self, vector: Vector | Sequence[float]) -> Mapping[str, float]:
        """Pair every entry of a vector with its label."""
        return dict(zip(self.labels, (float(v) for v in vector), strict=True))
