"""The page of an experiment."""

import xml.etree.ElementTree as ET

import pytest

from calibri.reporting.curves import Line, curves
from calibri.reporting.findings import (
    Findings,
    Table,
    curve_drawing,
    depth_drawing,
    render_findings,
    standalone,
)
from calibri.results import Figure, SiteRecord

BAD = "<script>alert(1)</script>"
SITES = [
    SiteRecord(name=f"b.{k}", block=f"blocks.{k}", layer="attn", stream="visual", parameter=f"p{k}")
    for k in range(3)
]
VALUES = {f"p{k}": Figure(mean=k - 1.0, low=k - 1.5, high=k - 0.5, n=9) for k in range(3)}


def findings(**values):
    return Findings(
        **{
            "experiment": "ablation",
            "title": "A title",
            "paper": "Figure 3a",
            "claim": "some blocks hurt",
            "answer": "confirmed",
            "verdict": "Two of three.",
            "method": "By hand.",
            "tables": [Table(title="T", columns=["block", "gain"], rows=[["p0", VALUES["p0"]]])],
            "facts": {"Images": "12"},
            "settings": {"seed": 0},
            "folder": "out",
            "calibri_version": "1",
            "created": "2026-01-01T00:00:00",
            **values,
        }
    )


def test_every_text_of_a_page_is_escaped():
    table = Table(title=BAD, columns=[BAD, BAD], rows=[[BAD, BAD]])
    texts = ("title", "claim", "verdict", "method", "folder", "paper")
    made = findings(
        tables=[table], facts={BAD: BAD}, settings={BAD: BAD}, **dict.fromkeys(texts, BAD)
    )
    line = Line(((0.0, VALUES["p0"]), (1.0, VALUES["p1"])), BAD)
    drawings = [
        depth_drawing(BAD, BAD, SITES, VALUES, 0.0),
        curve_drawing(BAD, BAD, {BAD: [line], "two": [line]}, BAD),
    ]
    page = render_findings(made, drawings)
    assert "<script" not in page
    assert page.count("&lt;script&gt;") > 12


def test_intervals_are_drawn_around_their_marks_on_their_side_of_the_line():
    root = ET.fromstring(standalone(depth_drawing("title", "", SITES, VALUES, 0.0)))
    lines = [e for e in root.iter() if e.tag.endswith("line") and "class" in e.attrib]
    (zero,) = (float(e.attrib["y1"]) for e in lines if e.attrib["class"] == "zero")
    whiskers = [e for e in lines if e.attrib["class"] == "whisker"]
    assert len(whiskers) == len(VALUES)
    for figure, bar in zip(VALUES.values(), whiskers, strict=True):
        low, high = (float(bar.attrib[end]) for end in ("y1", "y2"))  # y grows downwards
        assert high < low
        assert (high < zero) == (figure.high > 0)
        assert (low < zero) == (figure.low > 0)


def test_a_figure_alone_brings_its_style_along():
    drawn = standalone(depth_drawing("title", "", SITES, VALUES, 0.0))
    assert ET.fromstring(drawn).tag == "{http://www.w3.org/2000/svg}svg"
    assert "svg .whisker" in drawn


@pytest.mark.parametrize("width", [330.0, 1040.0])
def test_points_of_a_curve_stand_in_their_order_within_the_chart(width):
    points = tuple((x, VALUES[name]) for x, name in zip((0.0, 0.5, 2.0), VALUES, strict=True))
    root = ET.fromstring(curves([Line(points)], "scale", "name", width))
    dots = [e for e in root.iter("circle")]
    places = [float(dot.attrib["cx"]) for dot in dots]
    assert places == sorted(places)
    assert 0 < places[0] < places[-1] < width
    heights = [float(dot.attrib["cy"]) for dot in dots]
    assert heights == sorted(heights, reverse=True)  # the means grow
