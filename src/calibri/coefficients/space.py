"""The parametrisation of one search: from a flat vector to named coefficients, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calibri.arrays import Vector
from calibri.coefficients.coefficients import BRANCHES, Branch, Coefficients, Factor, Member
from calibri.config import Branches, Granularity
from calibri.errors import CalibrationError, ConfigError
from calibri.pipelines import Site, parameter_names

# From no guidance to three times what the model is served with; a shift is positive.
FACTOR_BOUNDS: dict[Factor, tuple[float, float]] = {"guidance": (0.0, 3.0), "shift": (0.2, 5.0)}


@dataclass(frozen=True)
class SearchSpace:
    """The parametrisation of one search: flat vector <-> named coefficients.

    The vector lists the scales of each member (member outermost), then the output weights (member
    outermost too), then the factors on the embedded guidance and on the scheduler's shift.

    Attributes:
        names: coefficient names at the granularity, without members.
        granularity: how sites share a coefficient.
        members: sets of scales: 1, or one for each member of the ensemble.
        start_weights: output weights of the uncalibrated model, one per member.
        search_output: whether the output weights are searched or stay at their start.
        branches: prompt of each member, see ``Coefficients``.
        knots: points of the trajectory that have scales of their own, see ``Coefficients``.
        output_knots: points of the trajectory that have output weights of their own.
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
    output_knots: int = 1
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
        output_knots: int = 1,
        search_guidance: bool = False,
        search_shift: bool = False,
    ) -> SearchSpace:
        """Build the space of a search over the sites of a transformer.

        Args:
            sites: residual-branch sites, without the output site.
            granularity: how sites share a coefficient.
            guidance_scale: w of classifier-free guidance; at most 1 means none.
            branches: one set of scales for both branches of guidance, or one set for each.
            search_output: search the output weights too.
            members: members of the ensemble that see the prompt, each with its own scales; under
                guidance the negative prompt has one more.
            knots: points of the trajectory that have scales of their own; 1 is the paper's.
            output_knots: points that have output weights of their own; 1 is the paper's.
            search_guidance: search a factor on the embedded guidance too.
            search_shift: search a factor on the scheduler's shift too.

        Raises:
            ConfigError: separate branches are asked for without guidance, or several members
                under guidance without them; or knots that do not fit together.
        """
        guided = guidance_scale > 1.0
        _check_knots(knots, output_knots, search_output)
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
            output_knots=output_knots,
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
        return len(self.start_weights) * self.output_knots if self.search_output else 0

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
        scales = [p + name + knot for p in own for knot in _at(self.knots) for name in self.names]
        weights = [
            f"{prefix}output{knot}" for prefix in prefixes for knot in _at(self.output_knots)
        ]
        weights = weights if self.search_output else []
        return (*scales, *weights, *self.factors)

    @property
    def _prefixes(self) -> list[str]:
        if len(self.start_weights) == 1:
            return [""]
        branches = self._branches
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
        outputs = np.repeat(self.start_weights, self.output_knots if self.search_output else 0)
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
        factors = dict(zip(self.factors, values[self.num_scales + self.num_outputs :], strict=True))
        return Coefficients.from_members(
            self._members(values), self.granularity, shared_scales=self.members == 1, **factors
        )

    def _members(self, values: Sequence[float]) -> list[Member]:
        """Read the members off the front of a vector."""
        rest = iter(values)
        sets = [
            tuple({name: next(rest) for name in self.names} for _ in range(self.knots))
            for _ in range(self.members)
        ]
        own = sets * (len(self.start_weights) if self.members == 1 else 1)
        weights = [
            tuple(next(rest) if self.search_output else start for _ in range(self.output_knots))
            for start in self.start_weights
        ]
        return list(map(Member, self._branches, self.start_weights, weights, own))

    @property
    def _branches(self) -> tuple[Branch, ...]:
        return self.branches or BRANCHES[: len(self.start_weights)]

    def vector(self, coefficients: Coefficients) -> Vector:
        """Flatten coefficients of this space; the inverse of ``coefficients``."""
        scales = [knot[name] for knot in coefficients.scales for name in self.names]
        outputs = coefficients.output_weights if self.search_output else ()
        factors = [getattr(coefficients, name) for name in self.factors]
        return np.array([*scales, *outputs, *factors])

    def named(self, vector: Vector | Sequence[float]) -> Mapping[str, float]:
        """Pair every entry of a vector with its label."""
        return dict(zip(self.labels, (float(v) for v in vector), strict=True))


def _at(knots: int) -> list[str]:
    """What tells the knots of one coefficient apart in its label."""
    return [f"@{knot}" for knot in range(knots)] if knots > 1 else [""]


def _check_knots(knots: int, output_knots: int, search_output: bool) -> None:
    if output_knots > 1 and not search_output:
        raise ConfigError(
            f"{output_knots} knots of output weights were asked for, but output weights are not "
            "searched. Set space.output_weights to true, or space.output_knots to 1."
        )
    if 1 < knots != output_knots > 1:
        raise ConfigError(
            f"Scales with {knots} knots and output weights with {output_knots} do not fit "
            "together. Set space.knots and space.output_knots alike, or one of them to 1."
        )
