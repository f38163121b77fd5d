"""Inline SVG: escaped elements, linear axes with round ticks, a frame to draw in."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from calibri.reporting.text import clean, decimals_for, number

# On the left there is room for "-0.0005".
MARGIN_LEFT, MARGIN_RIGHT, MARGIN_TOP, MARGIN_BOTTOM = 54.0, 12.0, 10.0, 34.0
_LABEL_WIDTH = 60.0


def element(tag: str, *children: str, **attributes: object) -> Markup:
    """Build one element; everything that is not ``Markup`` is escaped.

    Attribute names lose a trailing underscore and get hyphens (``class_``, ``text_anchor``);
    None leaves an attribute out.
    """
    given = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escape(_attribute(value))}"'
        for name, value in attributes.items()
        if value is not None
    )
    inner = Markup("").join(c if isinstance(c, Markup) else clean(c) for c in children)
    return Markup(f"<{tag}{given}>{inner}</{tag}>")


def _attribute(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".")
    return clean(str(value))


def text(content: str, x: float, y: float, class_: str = "label", anchor: str = "start") -> Markup:
    """A line of text at a point; ``anchor`` is start, middle or end."""
    return element("text", content, x=x, y=y, class_=class_, text_anchor=anchor)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    """A straight line."""
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def path(points: Sequence[tuple[float, float]], class_: str) -> Markup:
    """A line through points."""
    steps = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return element("polyline", points=steps, class_=class_)


def chart(width: float, height: float, title: str, *parts: str) -> Markup:
    """Put parts into an image with a name that screen readers speak."""
    return element(
        "svg",
        *parts,
        viewBox=f"0 0 {width:g} {height:g}",
        width=width,
        height=height,
        role="img",
        aria_label=title,
    )


@dataclass(frozen=True)
class Axis:
    """A linear map from values (``low`` to ``high``) to pixels (``start`` to ``end``)."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Map a value to its pixel."""
        share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self, most: int) -> list[float]:
        """At most about ``most`` round values within the axis."""
        return nice_ticks(self.low, self.high, most)


def nice_ticks(low: float, high: float, most: int) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten within [low, high], about ``most`` of them."""
    rough = (high - low) / max(most, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [k * step for k in range(first, last + 1)]


def integer_ticks(low: float, high: float, most: int) -> list[float]:
    """Round whole values within [low, high]."""
    return sorted({float(round(t)) for t in nice_ticks(low, high, most) if t == round(t)})


def domain(values: Iterable[float], *, pad: float = 0.08) -> tuple[float, float]:
    """The range of the finite values with room at both ends; never empty."""
    finite = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(finite), max(finite)
    # Values that are equal but for rounding still need an axis with tellable ticks.
    room = (high - low) * pad
    if room <= 1e-6 * max(abs(low), abs(high), 1e-3):
        room = max(abs(high) * 0.1, 0.01)
    return low - room, high + room


def tick_labels(ticks: Sequence[float]) -> list[str]:
    """Labels with the decimals that the distance of the ticks needs."""
    if len(ticks) > 1:
        decimals = decimals_for(ticks[1] - ticks[0])
    else:
        decimals = 0 if all(tick == round(tick) for tick in ticks) else 3
    return [number(tick, decimals) for tick in ticks]


def y_frame(x: Axis, y: Axis, most: int = 5) -> Markup:
    """Horizontal grid lines with their values on the left."""
    ticks = y.ticks(most)
    return Markup("").join(
        line(x.start, y(tick), x.end, y(tick), "grid")
        + text(label, x.start - 7, y(tick) + 3.5, "tick", "end")
        for tick, label in zip(ticks, tick_labels(ticks), strict=True)
    )


def x_frame(x: Axis, bottom: float, name: str, ticks: Sequence[float] | None = None) -> Markup:
    """The base line of a chart with ticks and the name of the axis below."""
    ticks = x.ticks(int((x.end - x.start) / _LABEL_WIDTH)) if ticks is None else ticks
    marks = [
        line(x(tick), bottom, x(tick), bottom + 4, "axis")
        + text(label, x(tick), bottom + 16, "tick", "middle")
        for tick, label in zip(ticks, tick_labels(ticks), strict=True)
    ]
    middle = (x.start + x.end) / 2
    return (
        line(x.start, bottom, x.end, bottom, "axis")
        + Markup("").join(marks)
        + text(name, middle, bottom + 31, "axis-name", "middle")
    )
