"""What became of weights: how near a scaling is, and whether rounding alone is left of it.

Weights b became t in a type that rounds to within half a unit in the last place u(t). They were
multiplied by s exactly when |t - s b| <= u(t) / 2 for every number, so each number allows an
interval of scales, and a scaling is what leaves their intersection non-empty. That asks for no
threshold, and bounds s far more narrowly than the rounding of one number does.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

# Bits of the significand, and the exponent of the smallest positive number.
_BITS = {
    torch.float64: (53, -1074),
    torch.float32: (24, -149),
    torch.float16: (11, -24),
    torch.bfloat16: (8, -133),
}
# Libraries multiply 16-bit numbers in float32, which is rounded itself: 2**-25 on 2**-12.
_SLACK = 2.0**-12
# The bounds themselves are computed in double precision.
_DOUBLE = 2.0**-51


@dataclass(frozen=True)
class Change:
    """What became of some weights b, in sums over their numbers; their changes are d = t - b.

    Attributes:
        numbers: all of them.
        changed: those that are others than before.
        square: sum of b * b.
        product: sum of b * d.
        power: sum of d * d.
        left: sum of squares of what the best scale leaves.
        rounding: what ``left`` is expected to be when it is rounding: u(t)**2 / 12 for each.
        low: the smallest scale that gives these numbers once rounded.
        high: the largest; below ``low`` when there is none.
    """

    numbers: int = 0
    changed: int = 0
    square: float = 0.0
    product: float = 0.0
    power: float = 0.0
    left: float = 0.0
    rounding: float = 0.0
    low: float = -math.inf
    high: float = math.inf

    @property
    def best(self) -> float:
        """The scale of least squares; 1 for weights that are all zero."""
        return 1.0 + self.product / self.square if self.square else 1.0

    @property
    def scale(self) -> float:
        """1 where that will do, or the middle of what gives these numbers, or ``best``."""
        if self.is_rounding:
            return 1.0
        width = self.high - self.low
        return (self.low + self.high) / 2 if 0 <= width < math.inf else self.best

    @property
    def is_scaling(self) -> bool:
        """Whether one scale and rounding give all of it."""
        return self.low <= self.high

    @property
    def is_rounding(self) -> bool:
        """Whether nothing but rounding happened."""
        return self.low <= 1.0 <= self.high

    @property
    def explained(self) -> float:
        """How much of ``power`` a scale takes away."""
        return self.product**2 / self.square if self.square else 0.0

    @property
    def size(self) -> float:
        """Sum of t * t."""
        return self.square + 2 * self.product + self.power

    def __add__(self, other: Change) -> Change:
        """What became of both, under one scale."""
        both = Change(
            self.numbers + other.numbers,
            self.changed + other.changed,
            self.square + other.square,
            self.product + other.product,
            self.power + other.power,
            0.0,
            self.rounding + other.rounding,
            max(self.low, other.low),
            min(self.high, other.high),
        )
        # Not the difference of large sums, in which rounding would be lost.
        left = sum(part.left + part.square * (part.best - both.best) ** 2 for part in (self, other))
        return Change(**{**both.__dict__, "left": left})


def total(changes: Iterable[Change]) -> Change:
    """What became of all, under one scale."""
    return reduce(Change.__add__, changes, Change())


@torch.no_grad()
def change_of(before: Tensor, after: Tensor) -> Change:
    """Compare weights in the types in which they are stored.

    Args:
        before: b, any shape. Where its type is coarser than that of ``after`` it may itself be
            rounded from what was scaled.
        after: t, of the same shape.

    Returns:
        Sums in double precision. They are not finite when a number is not.
    """
    old, new = before.double(), after.double()
    units = _units(new, after.dtype)
    coarser = _BITS[before.dtype][0] < _BITS[after.dtype][0]
    own = _units(old, before.dtype) if coarser else torch.zeros_like(old)
    low, high = _bounds(old, new, units, own)
    sums = change_by(old, new - old)
    rounding = float((units.square() + own.square()).sum()) / 12
    return Change(**{**sums.__dict__, "rounding": rounding, "low": low, "high": high})


@torch.no_grad()
def change_by(before: Tensor, delta: Tensor) -> Change:
    """Sum up a change that is known exactly: by it no rounding is excused.

    Args:
        before: float64 weights b.
        delta: float64 changes d.
    """
    square, product = float(before.square().sum()), float((before * delta).sum())
    best = product / square if square else 0.0
    return Change(
        numbers=before.numel(),
        changed=int((delta != 0).sum()),
        square=square,
        product=product,
        power=float(delta.square().sum()),
        left=float((delta - best * before).square().sum()),
        low=math.inf,
        high=-math.inf,
    )


def _units(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Units in the last place of numbers of a type, float64."""
    bits, smallest = _BITS[dtype]
    exponents = torch.where(values == 0, smallest, torch.frexp(values)[1] - bits)
    return torch.exp2(exponents.clamp(min=smallest).double())


def _bounds(old: Tensor, new: Tensor, units: Tensor, own: Tensor) -> tuple[float, float]:
    """Intersect the scales that each number allows."""
    new = torch.where(old < 0, -new, new)
    half = units / 2 * (1 + _SLACK) + new.abs() * _DOUBLE
    least, most = old.abs() - own / 2, old.abs() + own / 2
    free = least <= 0  # zero stays zero under every scale
    if not bool((new.abs() <= half + own)[free].all()):
        return math.inf, -math.inf
    first, last = (new - half)[~free], (new + half)[~free]
    least, most = least[~free], most[~free]
    if not first.numel():
        return -math.inf, math.inf
    low = first / torch.where(first >= 0, most, least)
    high = last / torch.where(last >= 0, least, most)
    return float(low.max()), float(high.min())
