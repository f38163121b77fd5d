"""Figures against a number, as lines with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from calibri.reporting.svg import (
    MARGIN_BOTTOM,
    MARGIN_LEFT,
    MARGIN_RIGHT,
    MARGIN_TOP,
    Axis,
    chart,
    domain,
    element,
    line,
    path,
    x_frame,
    y_frame,
)
from calibri.reporting.text import general, interval, mean
from calibri.results import Figure


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
        points: (x, figure), in the order of x.
        label: what the line is; empty where there is only one.
        style: its class in the style sheet.
    """

    points: tuple[tuple[float, Figure], ...]
    label: str = ""
    style: str = "calibrated"


def curves(lines: Sequence[Line], x_name: str, name: str, width: float) -> Markup:
    """Draw lines with a whisker at each point, and a line at zero where zero is in sight."""
    height = 190.0
    bottom = height - MARGIN_BOTTOM
    points = [point for own in lines for point in own.points]
    x = Axis(*domain((value for value, _ in points), pad=0.04), MARGIN_LEFT, width - MARGIN_RIGHT)
    bounds = [bound for _, figure in points for bound in (figure.low, figure.high, figure.mean)]
    y = Axis(*domain(bounds), bottom, MARGIN_TOP)
    zero = line(x.start, y(0), x.end, y(0), "zero") if y.low <= 0 <= y.high else Markup("")
    drawn = [_line(own, x, y) for own in lines]
    return chart(width, height, name, y_frame(x, y), x_frame(x, bottom, x_name), zero, *drawn)


def _line(own: Line, x: Axis, y: Axis) -> Markup:
    places = [(x(value), y(figure.mean)) for value, figure in own.points]
    dots = [_dot(value, figure, own, x, y) for value, figure in own.points]
    return path(places, f"series {own.style}") + Markup("").join(dots)


def _dot(value: float, figure: Figure, own: Line, x: Axis, y: Axis) -> Markup:
    place, spoken = x(value), f"{mean(figure)} ({interval(figure)}) at {general(value)}"
    return element(
        "g",
        element("title", f"{own.label}: {spoken}" if own.label else spoken),
        line(place, y(figure.low), place, y(figure.high), f"whisker {own.style}"),
        element("circle", cx=place, cy=y(figure.mean), r=3.5, class_=f"dot {own.style}"),
    )
