"""How much of a calibration is left once its scales are rounded into weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from calibri.sampling import FoldStep


@dataclass(frozen=True)
class Kept:
    """What is left of one scale in one weight, in sums over its numbers.

    Attributes:
        site: name of what is scaled.
        wanted: the scale.
        changed: numbers that are others than before.
        numbers: all of them.
        square: sum of squares of the weight before.
        product: sum of products of the weight before and after.
        rounding: sum of squares of what rounding takes off or adds.
    """

    site: str
    wanted: float
    changed: int
    numbers: int
    square: float
    product: float
    rounding: float


@dataclass(frozen=True)
class SiteSurvival:
    """What is left of one scale.

    Attributes:
        site: its name.
        wanted: the scale.
        effective: the factor between the weights before and after, by least squares.
        changed: share of the weights that are others than before, 0 to 1.
        noise: rounding in proportion to the effect, both as root mean squares: at 0 all of it is
            kept, at 1 rounding does as much as the scale.
    """

    site: str
    wanted: float
    effective: float
    changed: float
    noise: float


@torch.no_grad()
def kept_of(step: FoldStep, before: Tensor, after: Tensor) -> Kept:
    """Compare a weight before and after a step."""
    old, new = before.double(), after.double()
    return Kept(
        site=step.site,
        wanted=step.scale,
        changed=int((before != after).sum()),
        numbers=before.numel(),
        square=float((old * old).sum()),
        product=float((old * new).sum()),
        rounding=float((new - step.scale * old).square().sum()),
    )


def survival(kept: Iterable[Kept]) -> list[SiteSurvival]:
    """Add up the weights of every site, in the order in which they come."""
    by_site: dict[str, list[Kept]] = {}
    for record in kept:
        by_site.setdefault(record.site, []).append(record)
    return [_of_site(records) for records in by_site.values()]


def _of_site(records: Sequence[Kept]) -> SiteSurvival:
    wanted = records[0].wanted
    square = sum(record.square for record in records)
    effect = (wanted - 1) ** 2 * square
    return SiteSurvival(
        site=records[0].site,
        wanted=wanted,
        effective=sum(r.product for r in records) / square if square else 1.0,
        changed=sum(r.changed for r in records) / max(1, sum(r.numbers for r in records)),
        noise=math.sqrt(sum(r.rounding for r in records) / effect) if effect else 0.0,
    )


# Above it, more than a tenth of the effect's power is rounding.
_MUCH_NOISE = 1 / 3


def loss(sites: Sequence[SiteSurvival]) -> str:
    """Say in words what rounding takes away; empty when every scale survives."""
    poor = [site for site in sites if site.noise > _MUCH_NOISE]
    if not poor:
        return ""
    worst = max(poor, key=lambda site: site.noise)
    return (
        f"The stored precision loses part of this calibration: for {len(poor)} of {len(sites)} "
        f"scales rounding is more than a third of their effect. '{worst.site}' wants "
        f"{worst.wanted:.5g} and gets {worst.effective:.5g}; {worst.changed:.0%} of its weights "
        "change. Fuse with dtype float32, or keep the calibration loaded, which scales without "
        "rounding."
    )
