"""What ``calibri extract`` found: of each site what became of it, and of all of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import FiniteFloat, NonNegativeFloat, computed_field

from calibri.artifact.change import Change, total
from calibri.config import Granularity
from calibri.results import Record

Verdict = Literal["unchanged", "scaling", "disagree", "no scaling", "no weights"]


class SiteChange(Record):
    """What became of one site.

    Attributes:
        name: of the site; ``"output"`` for the output weight.
        scale: the factor on it: the middle of the bounds, and where there are none that of least
            squares over all weights that take it.
        low: the smallest factor that gives exactly these weights once rounded to their type; None
            when no factor does, or all do.
        high: the largest.
        residual: what the factor leaves, as a share of the weights; both as root mean squares.
        rounding: what rounding is expected to leave, in the same unit.
        power: sum of the squares of the changes.
        explained: share of it that the factor explains, 0 to 1; None when nothing changed.
        verdict: ``"unchanged"``; ``"scaling"``, one factor and rounding give these weights;
            ``"disagree"``, each tensor was scaled, by different factors; ``"no scaling"``; or
            ``"no weights"``, the site has none that could take a scale.
    """

    name: str
    scale: FiniteFloat
    low: FiniteFloat | None
    high: FiniteFloat | None
    residual: NonNegativeFloat
    rounding: NonNegativeFloat
    power: NonNegativeFloat
    explained: NonNegativeFloat | None
    verdict: Verdict

    @classmethod
    def of(cls, name: str, changes: Mapping[str, Change]) -> SiteChange:
        """Judge a site by its tensors."""
        change = total(changes.values())
        bounded = change.is_scaling and math.isfinite(change.high - change.low)
        size = change.size or 1.0
        return cls(
            name=name,
            scale=change.scale,
            low=change.low if bounded else None,
            high=change.high if bounded else None,
            residual=math.sqrt(max(0.0, change.left) / size),
            rounding=math.sqrt(change.rounding / size),
            power=change.power,
            explained=min(1.0, change.explained / change.power) if change.power else None,
            verdict=_verdict(changes, change),
        )


def _verdict(changes: Mapping[str, Change], change: Change) -> Verdict:
    if not changes:
        return "no weights"
    if change.is_rounding:
        return "unchanged"
    if change.is_scaling:
        return "scaling"
    return "disagree" if all(c.is_scaling for c in changes.values()) else "no scaling"


class Extraction(Record):
    """How much of what changed between two models is a scaling of branches.

    Attributes:
        base: the model before.
        tuned: the model after.
        transformer_class: of both.
        is_adapter: whether the second is an adapter, such as a LoRA.
        sites: all of them in their order, then the output.
        elsewhere: tensors that changed and take no scale.
        power_elsewhere: sum of the squares of the changes in them.
        shared: the granularities at which sites share scalars and every change is a scaling, too.
        is_coarse: whether the sites of a coefficient were scaled by different factors.
        is_swapped: whether the second model scaled gives the first, so that they are probably in
            the wrong order.
        granularity: of the calibration.
        folder: where the calibration is; None when none was written.
    """

    base: str
    tuned: str
    transformer_class: str
    is_adapter: bool
    sites: tuple[SiteChange, ...]
    elsewhere: tuple[str, ...]
    power_elsewhere: NonNegativeFloat
    shared: tuple[Granularity, ...]
    is_coarse: bool
    is_swapped: bool
    granularity: Granularity
    folder: Path | None = None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def explained(self) -> float:
        """Share of the squared norm of the whole change that scales explain, 0 to 1."""
        power = self.power_elsewhere + sum(site.power for site in self.sites)
        gained = sum(site.power * (site.explained or 0.0) for site in self.sites)
        return gained / power if power else 0.0

    @computed_field  # type: ignore[prop-decorator]
    @property
    def at_sites(self) -> float:
        """Share of the squared norm of the change that is in weights that take a scale."""
        inside = sum(site.power for site in self.sites)
        return inside / (inside + self.power_elsewhere) if inside else 0.0

    @computed_field  # type: ignore[prop-decorator]
    @property
    def is_scaling(self) -> bool:
        """Whether scales and rounding are all that happened, at this granularity."""
        return not self._reason

    @computed_field  # type: ignore[prop-decorator]
    @property
    def verdict(self) -> str:
        """What happened, in a sentence."""
        return self._reason or self._success

    @property
    def _success(self) -> str:
        moved = sum(site.verdict == "scaling" for site in self.sites)
        finest = f"TUNED is BASE with {moved} of {len(self.sites)} outputs scaled"
        if not self.shared:
            return f"{finest}."
        return f"{finest}; one scalar per {self.shared[-1]} is enough."

    @property
    def _reason(self) -> str:
        verdicts = [site.verdict for site in self.sites]
        if self.is_swapped:
            return (
                "BASE is TUNED with its branches scaled, not the other way round: they are "
                "probably in the wrong order. Pass the original model first."
            )
        if (
            not self.is_adapter
            and not self.elsewhere
            and not {*verdicts}
            - {
                "unchanged",
                "no weights",
            }
        ):
            return "TUNED is BASE: no weight differs beyond rounding."
        if self.is_adapter or self.elsewhere or "no scaling" in verdicts:
            return f"TUNED is no scaling of BASE: {self._what}."
        if "disagree" in verdicts:
            name = self.sites[verdicts.index("disagree")].name
            return (
                f"TUNED is no scaling of BASE: the weights of '{name}' were scaled by different "
                "factors, its bias by another than its weight, say."
            )
        if self.is_coarse:
            return f"The sites of a {self.granularity} were scaled by different factors."
        return ""

    @property
    def _what(self) -> str:
        failed = sum(site.verdict in ("no scaling", "disagree") for site in self.sites)
        words = [f"scales explain {self.explained:.1%} of the squared norm of the change"]
        if failed:
            words.append(f"{failed} of {len(self.sites)} outputs changed otherwise")
        if self.elsewhere:
            count = len(self.elsewhere)
            words.append(f"{count} tensors changed that take no scale ({self.elsewhere[0]}, ...)")
        return ", ".join(words)
