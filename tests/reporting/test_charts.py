from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markupsafe import Markup

from calibri.reporting import charts
from calibri.reporting.charts import Mark, Point, Stack
from calibri.reporting.svg import Axis, domain, element, integer_ticks, nice_ticks, tick_labels
from calibri.results import Checkpoint, Figure, Generation, SearchResult

NUMBERS = st.floats(-1e6, 1e6, allow_nan=False)
ANY = st.floats(allow_nan=True, allow_infinity=True)
TEXTS = st.text(st.characters(codec=None), max_size=20)


def parse(svg: Markup) -> ElementTree.Element:
    return ElementTree.fromstring(str(svg))


def numbers_in(root: ElementTree.Element) -> list[float]:
    keys = ("x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "r")
    found = [float(e.attrib[k]) for e in root.iter() for k in keys if k in e.attrib]
    points = [e.attrib["points"] for e in root.iter() if "points" in e.attrib]
    return found + [float(v) for p in points for v in re.split(r"[ ,]", p)]


def generation(number: int, mean: float, baseline: float, sigma: float) -> Generation:
    return Generation(
        generation=number,
        mean=mean,
        best=mean,
        baseline=baseline,
        sigma=sigma,
        images=1,
        seconds=1.0,
    )


def search(rows: list[Generation], checkpoints: tuple[Checkpoint, ...] = ()) -> SearchResult:
    return SearchResult(
        coefficients={},
        generations=rows,
        checkpoints=list(checkpoints),
        stopped="",
        images=1,
        seconds=1.0,
    )


@given(low=NUMBERS, share=st.floats(2e-6, 1e3), most=st.integers(1, 12))
def test_ticks_are_round_evenly_spaced_and_inside(low: float, share: float, most: int) -> None:
    span = share * max(abs(low), 1e-3)  # no domain is narrower, relative to its values
    high = low + span
    ticks = nice_ticks(low, high, most)
    assert len(ticks) <= most + 1
    assert all(low - 1e-6 * span <= tick <= high + 1e-6 * span for tick in ticks)
    if len(ticks) > 1:
        step = ticks[1] - ticks[0]
        mantissa = step / 10 ** math.floor(math.log10(step) + 1e-4)
        assert min(abs(mantissa - m) for m in (1, 2, 5, 10)) < 1e-2


@given(low=NUMBERS, span=st.floats(1e-3, 1e3), most=st.integers(2, 12))
def test_tick_labels_tell_the_ticks_apart(low: float, span: float, most: int) -> None:
    labels = tick_labels(nice_ticks(low, low + span, most))
    assert len(set(labels)) == len(labels)


@given(count=st.integers(1, 500), most=st.integers(1, 20))
def test_integer_ticks_are_whole(count: int, most: int) -> None:
    ticks = integer_ticks(-0.5, count - 0.5, most)
    assert all(tick == int(tick) for tick in ticks)
    assert tick_labels(ticks) == [str(int(tick)) for tick in ticks]


@given(values=st.lists(ANY))
def test_a_domain_holds_every_finite_value(values: list[float]) -> None:
    finite = [v for v in values if math.isfinite(v) and abs(v) < 1e300]
    low, high = domain(v for v in values if not math.isfinite(v) or abs(v) < 1e300)
    assert low < high
    assert all(low <= v <= high for v in finite)


@given(low=NUMBERS, span=st.floats(1e-3, 1e6), share=st.floats(0, 1))
def test_an_axis_is_linear(low: float, span: float, share: float) -> None:
    axis = Axis(low, low + span, 300.0, 20.0)
    assert axis(low) == 300.0
    assert axis(low + share * span) == pytest.approx(300.0 - 280.0 * share, abs=1e-3)


@given(content=TEXTS, value=TEXTS)
def test_elements_escape_whatever_they_are_given(content: str, value: str) -> None:
    root = parse(element("text", content, class_=value))
    assert root.tag == "text"
    assert list(root) == []
    assert set(root.attrib) == {"class"}


def test_markup_in_text_stays_text() -> None:
    hostile = '</text><script>alert(1)</script>" onload="x'
    root = parse(element("text", hostile, class_=hostile))
    assert root.text == hostile
    assert root.attrib == {"class": hostile}


@given(rows=st.lists(st.tuples(ANY, ANY, ANY), min_size=1, max_size=5))
def test_no_curve_draws_a_number_that_is_not_one(rows: list[tuple[float, float, float]]) -> None:
    small = [(a, b, c) for a, b, c in rows if not any(1e100 < abs(v) < math.inf for v in (a, b, c))]
    result = search([generation(k, *row) for k, row in enumerate(small)])
    for draw in (charts.reward_curve, charts.gain_curve, charts.sigma_curve):
        root = parse(draw(result, 400.0))
        assert all(math.isfinite(v) for v in numbers_in(root))
        assert not re.search(r"\b(nan|inf)\b", str(draw(result, 400.0)), re.IGNORECASE)


def test_the_reward_curve_goes_up_when_the_reward_does() -> None:
    rows = [generation(k, 0.4 + 0.05 * k, 0.4, 0.1) for k in range(5)]
    root = parse(charts.reward_curve(search(rows), 400.0))
    lines = {e.attrib["class"]: e.attrib["points"] for e in root.iter("polyline")}
    heights = [float(p.split(",")[1]) for p in lines["series calibrated"].split()]
    flat = [float(p.split(",")[1]) for p in lines["series original"].split()]
    assert heights == sorted(heights, reverse=True)  # y grows downwards
    assert heights[0] == flat[0]
    assert len(set(flat)) == 1


def test_generations_are_numbered_from_one_as_in_the_terminal() -> None:
    rows = [generation(k, 0.5, 0.4, 0.1) for k in range(20)]
    difference = Figure(mean=0.1, low=0.05, high=0.15, n=64)
    marks = (Checkpoint(generation=19, difference=difference, chosen=True),)
    for draw in (charts.reward_curve, charts.gain_curve, charts.sigma_curve):
        root = parse(draw(search(rows, marks), 400.0))
        ticks = [
            int(e.text or "")
            for e in root.iter("text")
            if e.attrib["class"] == "tick" and e.attrib["text-anchor"] == "middle"
        ]
        assert min(ticks) >= 1
        assert max(ticks) == 20
        spoken = [e.text or "" for e in root.iter("title")]
        numbers = {int(n) for text in spoken for n in re.findall(r"generation (\d+)", text)}
        assert numbers in ({*range(1, 21)}, {20})


@settings(deadline=None)
@given(rows=st.integers(1, 5), width=st.floats(200, 800))
def test_no_line_at_zero_goes_through_a_label(rows: int, width: float) -> None:
    figure = Figure(mean=0.1, low=-0.2, high=0.4, n=9)
    root = parse(charts.forest([("against", figure)] * rows, "reward", width))
    lines = [e.attrib for e in root.iter("line") if e.attrib["class"] == "zero"]
    assert len(lines) == rows
    for label in (e for e in root.iter("text") if "halo" in e.attrib["class"]):
        baseline = float(label.attrib["y"])
        for zero in lines:
            above, below = float(zero["y2"]) <= baseline - 11, float(zero["y1"]) >= baseline + 4
            assert above or below


def test_one_generation_is_a_dot() -> None:
    root = parse(charts.reward_curve(search([generation(0, 0.5, 0.4, 0.1)]), 400.0))
    assert list(root.iter("polyline")) == []
    dots = [e for e in root.iter("circle") if e.attrib["class"].startswith("dot")]
    assert len(dots) == 2


def test_the_chosen_checkpoint_stands_out() -> None:
    difference = Figure(mean=0.1, low=0.05, high=0.15, n=64)
    marks = tuple(
        Checkpoint(generation=g, difference=difference, chosen=g == 4) for g in (2, 4)
    )  # fmt: skip
    rows = [generation(k, 0.5, 0.4, 0.1) for k in range(5)]
    root = parse(charts.gain_curve(search(rows, marks), 400.0))
    classes = [e.attrib["class"] for e in root.iter("circle")]
    assert classes == ["dot hollow", "dot chosen"]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.1, 0.2, "good"), (-0.2, -0.1, "bad"), (-0.1, 0.1, "open"), (0.0, 0.1, "open")],
)
def test_the_tone_of_a_difference_is_that_of_its_interval(
    low: float, high: float, expected: str
) -> None:
    assert charts.tone(Figure(mean=(low + high) / 2, low=low, high=high, n=9)) == expected


@given(mean=st.floats(-1e3, 1e3), half=st.floats(1e-4, 1e3))
def test_a_forest_shows_on_which_side_of_zero_an_interval_lies(mean: float, half: float) -> None:
    figure = Figure(mean=mean, low=mean - half, high=mean + half, n=9)
    root = parse(charts.forest([("against", figure)], "reward", 330.0))
    (zero,) = (e for e in root.iter("line") if e.attrib["class"] == "zero")
    (bar,) = (e for e in root.iter("line") if e.attrib["class"].startswith("bar"))
    origin, left, right = (
        float(v) for v in (zero.attrib["x1"], bar.attrib["x1"], bar.attrib["x2"])
    )
    assert left <= right
    if charts.tone(figure) == "good":
        assert left >= origin - 0.01
    elif charts.tone(figure) == "bad":
        assert right <= origin + 0.01
    else:
        assert left <= origin + 0.01
        assert right >= origin - 0.01
    assert min(origin, left) >= 0
    assert max(origin, right) <= 330.0


def test_every_coefficient_is_one_mark_on_its_side_of_one() -> None:
    marks = [
        Mark(f"block.{k}", k // 4, ("visual", "text", "joint")[k % 3], charts.SHAPES[k % 4], value)
        for k, value in enumerate([1.3, 0.7, 1.0, -0.2, 2.0, 1.01, 0.99, 0.5])
    ]
    root = parse(charts.depth(marks, [Stack("blocks", 0, 2)], "", 330.0))
    (zero,) = (e for e in root.iter("line") if e.attrib["class"] == "zero")
    stems = [e for e in root.iter("line") if e.attrib["class"] == "stem"]
    assert len([e for e in root.iter() if e.attrib.get("class") == "mark"]) == len(marks)
    for mark, stem in zip(marks, stems, strict=True):
        rise = float(zero.attrib["y1"]) - float(stem.attrib["y2"])
        assert (
            rise == pytest.approx(0, abs=0.01) if mark.value == 1 else rise * (mark.value - 1) > 0
        )
    places = [float(stem.attrib["x1"]) for stem in stems]
    assert places == sorted(places)
    assert len(set(places)) == len(places)


def test_blocks_of_each_list_are_numbered_from_zero() -> None:
    stacks = [Stack("double", 0, 2), Stack("single", 2, 2)]
    marks = [Mark("m", block, "joint", "circle", 1.1) for block in range(4)]
    root = parse(charts.depth(marks, stacks, "", 800.0))
    ticks = [e.text for e in root.iter("text") if e.attrib["class"] == "tick"]
    assert [t for t in ticks if t in ("0", "1")] == ["0", "1", "0", "1"]
    assert {"double", "single"} <= set(ticks)


def test_points_over_steps_are_told_apart_and_in_order() -> None:
    points = [
        Point(steps, 0.5, None, None, calibrated, "")
        for calibrated in (True, False)
        for steps in (8, 4, 12)
    ]
    root = parse(charts.over_steps(points, "reward", 330.0))
    lines = {e.attrib["class"]: e.attrib["points"] for e in root.iter("polyline")}
    assert set(lines) == {"series original", "series calibrated"}
    for series in lines.values():
        places = [float(p.split(",")[0]) for p in series.split()]
        assert places == sorted(places)
    ticks = [e.text for e in root.iter("text") if e.attrib.get("text-anchor") == "middle"]
    assert ticks == ["4", "8", "12", "steps"]
