"""Named coefficients: the values a search finds and an artifact keeps.

``Coefficients`` are plain data. ``SearchSpace`` ties them to the sites of one transformer: from the
flat vector of the search to named values, and from named values to one scale per branch and site.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, FiniteFloat

from calibri.errors import CalibrationError, ConfigError
from calibri.results import Record
from calibri.sites import Site

Granularity = Literal["block", "layer", "gate"]
Branches = Literal["shared", "separate"]
Vector = NDArray[np.float64]

GRANULARITIES: tuple[Granularity, ...] = get_args(Granularity)


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

    Attributes:
        granularity: how sites share a scalar.
        scales: one mapping of parameter name to scalar for each member; one mapping serves all
            branches, two are the conditional and the unconditional branch of guidance.
        output_weights: omega of each branch: one without guidance, (conditional, unconditional)
            with it.
        start_weights: the output weights of the uncalibrated model: (1,), or (w, 1 - w) under
            guidance scale w (spec section 2).
    """

    granularity: Granularity
    scales: tuple[dict[str, FiniteFloat], ...] = Field(min_length=1, max_length=2)
    output_weights: tuple[FiniteFloat, ...] = Field(min_length=1, max_length=2)
    start_weights: tuple[FiniteFloat, ...] = Field(min_length=1, max_length=2)

    @property
    def num_branches(self) -> int:
        """Branches of one image: 1, or 2 under classifier-free guidance."""
        return len(self.output_weights)

    @property
    def per_branch(self) -> bool:
        """Whether rows of the two branches need different scales."""
        multipliers = self._output_multipliers()
        return len(self.scales) > 1 or len(set(multipliers)) > 1

    def _output_multipliers(self) -> list[float]:
        # The pipeline itself combines the branches with the start weights (guidance formula).
        pairs = zip(self.output_weights, self.start_weights, strict=True)
        return [weight / start for weight, start in pairs]

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
            }
        )

    def site_scales(self, sites: Sequence[Site]) -> Vector:
        """Expand to one scale per branch and site: float64 (branches, sites + 1), output last.

        Raises:
            CalibrationError: the names do not match the sites.
        """
        self._check_names(sites)
        rows = [
            [member[parameter_name(site, self.granularity)] for site in sites]
            for member in self.scales
        ]
        rows = rows if len(rows) == self.num_branches else rows * self.num_branches
        table = [[*row, out] for row, out in zip(rows, self._output_multipliers(), strict=True)]
        return np.array(table, dtype=np.float64)

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

    The vector lists the scales of each member (member outermost), then the output weights.

    Attributes:
        names: coefficient names at the granularity, without members.
        granularity: how sites share a coefficient.
        members: sets of scales: 1, or 2 when each branch of guidance has its own.
        start_weights: output weights of the uncalibrated model, one per branch.
        search_output: whether the output weights are searched or stay at their start.
    """

    names: tuple[str, ...]
    granularity: Granularity
    members: int = 1
    start_weights: tuple[float, ...] = (1.0,)
    search_output: bool = True

    @classmethod
    def build(
        cls,
        sites: Sequence[Site],
        granularity: Granularity,
        *,
        guidance_scale: float = 1.0,
        branches: Branches = "shared",
        search_output: bool = True,
    ) -> SearchSpace:
        """Lay out a search over the sites of a transformer.

        Args:
            sites: residual-branch sites, without the output site.
            granularity: how sites share a coefficient.
            guidance_scale: w of classifier-free guidance; at most 1 means none.
            branches: one set of scales for both branches of guidance, or one set for each.
            search_output: search the output weights too.

        Raises:
            ConfigError: separate branches are asked for without guidance.
        """
        guided = guidance_scale > 1.0
        if branches == "separate" and not guided:
            raise ConfigError(
                f"Separate coefficients per branch need classifier-free guidance, but "
                f"guidance_scale is {guidance_scale}. Raise it above 1 or use shared branches."
            )
        return cls(
            names=parameter_names(sites, granularity),
            granularity=granularity,
            members=2 if branches == "separate" else 1,
            start_weights=(guidance_scale, 1.0 - guidance_scale) if guided else (1.0,),
            search_output=search_output,
        )

    @property
    def size(self) -> int:
        """Length of the flat vector."""
        return len(self.labels)

    @property
    def labels(self) -> tuple[str, ...]:
        """Name of every entry of the flat vector."""
        branch = ("conditional/", "unconditional/")
        scales = [
            (branch[member] if self.members > 1 else "") + name
            for member in range(self.members)
            for name in self.names
        ]
        if not self.search_output:
            return tuple(scales)
        guided = len(self.start_weights) > 1
        weights = [f"{branch[b] if guided else ''}output" for b in range(len(self.start_weights))]
        return (*scales, *weights)

    @property
    def start(self) -> Vector:
        """The original model as a vector: ones, then the start weights."""
        outputs = self.start_weights if self.search_output else ()
        return np.array([1.0] * (self.members * len(self.names)) + list(outputs))

    @property
    def is_output(self) -> NDArray[np.bool_]:
        """Which entries of the vector are output weights."""
        scales = self.members * len(self.names)
        return np.arange(self.size) >= scales

    def coefficients(self, vector: Vector | Sequence[float]) -> Coefficients:
        """Name the entries of a flat vector (float64, shape (size,)).

        Raises:
            CalibrationError: the vector has another length.
        """
        values = [float(value) for value in vector]
        if len(values) != self.size:
            raise CalibrationError(
                f"The vector has {len(values)} entries, this search space has {self.size} "
                f"({self.members} x {len(self.names)} scales and "
                f"{self.size - self.members * len(self.names)} output weights)."
            )
        step = len(self.names)
        scales = [
            dict(zip(self.names, values[m * step : (m + 1) * step], strict=True))
            for m in range(self.members)
        ]
        weights = values[self.members * step :] if self.search_output else self.start_weights
        return Coefficients(
            granularity=self.granularity,
            scales=tuple(scales),
            output_weights=tuple(weights),
            start_weights=self.start_weights,
        )

    def vector(self, coefficients: Coefficients) -> Vector:
        """Flatten coefficients of this space; the inverse of ``coefficients``."""
        scales = [member[name] for member in coefficients.scales for name in self.names]
        outputs = coefficients.output_weights if self.search_output else ()
        return np.array([*scales, *outputs])

    def named(self, vector: Vector | Sequence[float]) -> Mapping[str, float]:
        """Pair every entry of a vector with its label."""
        return dict(zip(self.labels, (float(v) for v in vector), strict=True))
