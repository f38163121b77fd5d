"""The charts of a report, drawn for a given width in pixels."""

from __future__ import annotations

import math
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
    integer_ticks,
    line,
    path,
    text,
    x_frame,
    y_frame,
)
from calibri.reporting.text import general, interval, mean, number
from calibri.results import Checkpoint, Figure, SearchResult

# In a row of a forest: where its bar is below the label, and the height that is free around it.
_BAR, _BAR_ROOM = 30.0, 10.0
SHAPES = ("circle", "square", "triangle", "diamond")


@dataclass(frozen=True)
class Point:
    """One setting in a chart over steps; ``low`` and ``high`` are None without an interval."""

    steps: int
    value: float
    low: float | None
    high: float | None
    calibrated: bool
    label: str


@dataclass(frozen=True)
class Mark:
    """One coefficient at its depth in the network.

    Attributes:
        block: index of the block, in the order of the network.
        stream: ``"visual"``, ``"text"`` or ``"joint"``; the colour.
        shape: one of ``SHAPES``.
        low: of its interval; None without one.
        high: of its interval.
        said: what it is, in words; empty for its name and value.
    """

    name: str
    block: int
    stream: str
    shape: str
    value: float
    low: float | None = None
    high: float | None = None
    said: str = ""


@dataclass(frozen=True)
class Stack:
    """Consecutive blocks of one list: its name, first index and number of blocks."""

    name: str
    first: int
    count: int


def counted(generation: int) -> int:
    """Number a generation as the terminal does, from 1; a run counts from 0."""
    return generation + 1


def tone(figure: Figure) -> str:
    """Whether an interval lies above zero (good), below (bad) or around it (open)."""
    if figure.low > 0:
        return "good"
    return "bad" if figure.high < 0 else "open"


def _finite(*values: float | None) -> bool:
    return all(value is not None and math.isfinite(value) for value in values)


def forest(
    rows: Sequence[tuple[str, Figure]],
    name: str,
    width: float,
    axis: str = "calibrated minus original",
) -> Markup:
    """Differences with their intervals, one row each, and a line at zero."""
    shown = [(label, f) for label, f in rows if _finite(f.mean, f.low, f.high)]
    pitch, top = 44.0, 6.0
    bottom = top + pitch * len(shown) + 4
    bounds = [0.0, *(v for _, f in shown for v in (f.low, f.high))]
    x = Axis(*domain(bounds), 8.0, width - 8.0)
    # Beside the bars alone, since the labels stand in between.
    zero = [
        line(x(0), low - _BAR_ROOM, x(0), low + _BAR_ROOM, "zero")
        for low in (top + pitch * k + _BAR for k in range(len(shown)))
    ]
    bars = [_forest_row(label, f, x, top + pitch * k) for k, (label, f) in enumerate(shown)]
    base = x_frame(x, bottom, axis)
    return chart(width, bottom + MARGIN_BOTTOM, f"{name}: differences", *zero, *bars, base)


def _forest_row(label: str, figure: Figure, x: Axis, top: float) -> Markup:
    y, kind = top + _BAR, tone(figure)
    spoken = f"{label}: {mean(figure, sign=True)} ({interval(figure, sign=True)})"
    parts = (
        element("title", spoken),
        text(label, x.start, top + 14, "label halo"),
        text(mean(figure, sign=True), x.end, top + 14, f"value halo {kind}", "end"),
        line(x(figure.low), y, x(figure.high), y, f"bar {kind}"),
        element("circle", cx=x(figure.mean), cy=y, r=5.0, class_=f"dot {kind}"),
    )
    return element("g", *parts)


def reward_curve(search: SearchResult, width: float) -> Markup:
    """Mean objective of the candidates and the original model on the same bucket."""
    generations = [g for g in search.generations if _finite(g.mean, g.baseline)]
    x, height = _generation_axis(search, width), 230.0
    bottom = height - MARGIN_BOTTOM
    values = [v for g in generations for v in (g.mean, g.baseline)]
    y = Axis(*domain(values), bottom, MARGIN_TOP)
    series = [
        _series([(x(counted(g.generation)), y(g.baseline)) for g in generations], "original"),
        _series([(x(counted(g.generation)), y(g.mean)) for g in generations], "calibrated"),
    ]
    tips = [
        _tip(
            x(counted(g.generation)),
            y(g.mean),
            f"generation {counted(g.generation)}: candidates {general(g.mean)}, original "
            f"{general(g.baseline)}, best candidate {general(g.best)}",
        )
        for g in generations
    ]
    base = _generation_frame(x, bottom, "generation")
    return chart(width, height, "Objective by generation", y_frame(x, y, 7), base, *series, *tips)


def gain_curve(search: SearchResult, width: float) -> Markup:
    """Candidates minus original per bucket, and the checkpoints' validated differences."""
    generations = [g for g in search.generations if _finite(g.mean, g.baseline)]
    checkpoints = [
        c for c in search.checkpoints if _finite(c.difference.low, c.difference.high)
    ]  # fmt: skip
    x, height = _generation_axis(search, width), 190.0
    bottom = height - MARGIN_BOTTOM
    bounds = [v for c in checkpoints for v in (c.difference.low, c.difference.high)]
    y = Axis(
        *domain([0.0, *bounds, *(g.mean - g.baseline for g in generations)]), bottom, MARGIN_TOP
    )
    gains = [(x(counted(g.generation)), y(g.mean - g.baseline)) for g in generations]
    parts = [
        y_frame(x, y, 6),
        line(x.start, y(0), x.end, y(0), "zero"),
        _generation_frame(x, bottom, "generation"),
        _series(gains, "faint"),
        _joined(checkpoints, x, y),
        *(_checkpoint(counted(c.generation), c.difference, c.chosen, x, y) for c in checkpoints),
    ]
    return chart(width, height, "Gain over the original by generation", *parts)


def _joined(checkpoints: Sequence[Checkpoint], x: Axis, y: Axis) -> Markup:
    points = [(x(counted(c.generation)), y(c.difference.mean)) for c in checkpoints]
    return path(points, "series calibrated") if len(points) > 1 else Markup("")


def _checkpoint(generation: int, figure: Figure, chosen: bool, x: Axis, y: Axis) -> Markup:
    place, note = x(generation), ", chosen" if chosen else ""
    gain = f"{mean(figure, sign=True)} ({interval(figure, sign=True)})"
    spoken = f"checkpoint after generation {generation}{note}: {gain}"
    return element(
        "g",
        element("title", spoken),
        line(place, y(figure.low), place, y(figure.high), "whisker calibrated"),
        element(
            "circle",
            cx=place,
            cy=y(figure.mean),
            r=6.0 if chosen else 4.0,
            class_="dot chosen" if chosen else "dot hollow",
        ),
    )


def sigma_curve(search: SearchResult, width: float) -> Markup:
    """Step size of the search after each generation."""
    generations = [g for g in search.generations if _finite(g.sigma)]
    x, height = _generation_axis(search, width), 130.0
    bottom = height - MARGIN_BOTTOM
    top = domain([0.0, *(g.sigma for g in generations)])[1]
    y = Axis(0.0, top, bottom, MARGIN_TOP)
    points = [(x(counted(g.generation)), y(g.sigma)) for g in generations]
    tips = [
        _tip(px, py, f"generation {counted(g.generation)}: sigma {general(g.sigma)}")
        for g, (px, py) in zip(generations, points, strict=True)
    ]
    parts = [
        y_frame(x, y, 3),
        _generation_frame(x, bottom, "generation"),
        _series(points, "sigma"),
        *tips,
    ]
    return chart(width, height, "Sigma by generation", *parts)


def _generation_axis(search: SearchResult, width: float) -> Axis:
    numbers = [counted(g.generation) for g in search.generations]
    numbers += [counted(c.generation) for c in search.checkpoints]
    low, high = min(numbers, default=1), max(numbers, default=2)
    room = max((high - low) * 0.02, 0.5)
    return Axis(low - room, high + room, MARGIN_LEFT, width - MARGIN_RIGHT)


def _generation_frame(x: Axis, bottom: float, name: str) -> Markup:
    most = int((x.end - x.start) / 50)
    return x_frame(x, bottom, name, integer_ticks(x.low, x.high, most))


def _series(points: Sequence[tuple[float, float]], class_: str) -> Markup:
    """A line, or a dot where one point makes no line."""
    if not points:
        return Markup("")
    if len(points) == 1:
        return element("circle", cx=points[0][0], cy=points[0][1], r=4.0, class_=f"dot {class_}")
    return path(points, f"series {class_}")


def _tip(x: float, y: float, spoken: str) -> Markup:
    return element("circle", element("title", spoken), cx=x, cy=y, r=7.0, class_="hover")


def depth(
    marks: Sequence[Mark], stacks: Sequence[Stack], name: str, width: float, base: float = 1.0
) -> Markup:
    """Values along the network: stems from ``base``, one band of the x axis for each block."""
    height, top = 250.0, 22.0
    bottom = height - MARGIN_BOTTOM
    blocks = max((stack.first + stack.count for stack in stacks), default=1)
    x = Axis(-0.5, blocks - 0.5, MARGIN_LEFT, width - MARGIN_RIGHT)
    shown = [mark for mark in marks if _finite(mark.value)]
    bounds = [v for mark in shown for v in (mark.value, mark.low, mark.high) if v is not None]
    y = Axis(*domain([base, *bounds]), bottom, top)
    parts = [
        *_bands(x, blocks, top, bottom),
        y_frame(x, y),
        *(_stack(stack, x, top, bottom) for stack in stacks),
        line(x.start, y(base), x.end, y(base), "zero"),
        *_stems(shown, x, y, base),
        line(x.start, bottom, x.end, bottom, "axis"),
        text("block", (x.start + x.end) / 2, bottom + 31, "axis-name", "middle"),
    ]
    return chart(width, height, name, *parts)


def _bands(x: Axis, blocks: int, top: float, bottom: float) -> list[Markup]:
    """Shade every second block, so that a mark is easily seen to belong to one."""
    shape = {"y": top, "height": bottom - top, "width": x(1) - x(0), "class_": "band"}
    return [element("rect", x=x(block - 0.5), **shape) for block in range(1, blocks, 2)]


def _stack(stack: Stack, x: Axis, top: float, bottom: float) -> Markup:
    """Name and numbers of one list of blocks, each numbered from zero as in the model."""
    parts = [text(stack.name, x(stack.first - 0.5) + 4, top - 9, "tick")]
    if stack.first:
        edge = x(stack.first - 0.5)
        parts.append(line(edge, top - 18, edge, bottom + 6, "grid strong"))
    room = max(1, int((x(stack.count) - x(0)) / 30))
    for index in integer_ticks(0, stack.count - 1, room) if stack.count > 1 else [0.0]:
        place = x(stack.first + index)
        parts.append(text(number(index, 0), place, bottom + 16, "tick", "middle"))
    return Markup("").join(parts)


def _stems(marks: Sequence[Mark], x: Axis, y: Axis, base: float) -> list[Markup]:
    by_block: dict[int, list[Mark]] = {}
    for mark in marks:
        by_block.setdefault(mark.block, []).append(mark)
    most = max(map(len, by_block.values()), default=1)
    pitch = min((x(1) - x(0)) * 0.8 / most, 16.0)
    size = min(max(pitch * 0.4, 2.2), 5.5)
    return [
        _stem(mark, x(block) + (k - (len(group) - 1) / 2) * pitch, y, size, base)
        for block, group in by_block.items()
        for k, mark in enumerate(group)
    ]


def _stem(mark: Mark, place: float, y: Axis, size: float, base: float) -> Markup:
    # An interval takes the place of the stem, which would cross it.
    low = base if mark.low is None else mark.low
    high = mark.value if mark.high is None else mark.high
    return element(
        "g",
        element("title", mark.said or f"{mark.name} = {number(mark.value, 4)}"),
        line(place, y(low), place, y(high), "stem" if mark.low is None else "whisker"),
        marker(mark.shape, place, y(mark.value), size),
        class_=f"stream-{mark.stream}",
    )


def marker(shape: str, x: float, y: float, size: float) -> Markup:
    """A filled mark of about the same area whatever its shape."""
    if shape == "circle":
        return element("circle", cx=x, cy=y, r=size, class_="mark")
    r = size * 1.25
    corners = {
        "square": [(-0.72, -0.72), (0.72, -0.72), (0.72, 0.72), (-0.72, 0.72)],
        "triangle": [(0.0, -1.05), (0.95, 0.7), (-0.95, 0.7)],
        "diamond": [(0.0, -1.1), (1.0, 0.0), (0.0, 1.1), (-1.0, 0.0)],
    }[shape]
    points = " ".join(f"{x + r * dx:.1f},{y + r * dy:.1f}" for dx, dy in corners)
    return element("polygon", points=points, class_="mark")


def over_steps(points: Sequence[Point], name: str, width: float) -> Markup:
    """A score against sampling steps, original and calibrated, with intervals where known."""
    shown = [p for p in points if _finite(p.value)]
    height = 190.0
    bottom = height - MARGIN_BOTTOM
    steps = sorted({float(p.steps) for p in shown})
    x = Axis(*domain(steps, pad=0.1), MARGIN_LEFT, width - MARGIN_RIGHT)
    bounds = [v for p in shown for v in (p.value, p.low, p.high) if v is not None]
    y = Axis(*domain(bounds), bottom, MARGIN_TOP)
    parts = [y_frame(x, y), x_frame(x, bottom, "steps", steps)]
    for calibrated in (False, True):
        series = [p for p in shown if p.calibrated == calibrated]
        class_ = "calibrated" if calibrated else "original"
        line_points = [(_place(p, x), y(p.value)) for p in sorted(series, key=lambda p: p.steps)]
        if len(series) > 1:
            parts.append(path(line_points, f"series {class_}"))
        parts += [_step_point(p, x, y, class_) for p in series]
    return chart(width, height, f"{name} against steps", *parts)


def _place(point: Point, x: Axis) -> float:
    # A little apart, so that the intervals of one number of steps do not cover each other.
    return x(point.steps) + (2.5 if point.calibrated else -2.5)


def _step_point(point: Point, x: Axis, y: Axis, class_: str) -> Markup:
    place = _place(point, x)
    whisker = Markup("")
    if point.low is not None and point.high is not None and _finite(point.low, point.high):
        whisker = line(place, y(point.low), place, y(point.high), f"whisker {class_}")
    return element(
        "g",
        element("title", point.label),
        whisker,
        element("circle", cx=place, cy=y(point.value), r=4.5, class_=f"dot {class_}"),
    )
