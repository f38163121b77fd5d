"""What an experiment found, as plain data, and its page: verdict, drawings, tables, cost."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from markupsafe import Markup

from calibri.reporting import charts, network
from calibri.reporting.curves import Line, curves
from calibri.reporting.page import both_widths, environment, narrow_depth
from calibri.reporting.text import interval, mean, number
from calibri.results import Figure, Record, SearchResult, SiteRecord

Cell = str | int | float | Figure | None
Answer = Literal["confirmed", "confirmed in part", "not confirmed", "not decidable", "not judged"]


BOOTSTRAP = "95% bootstrap intervals over prompts"


class Table(Record):
    """A table of figures.

    Attributes:
        title: what it shows.
        columns: headings; the first column names the rows.
        rows: a cell for each column. A ``Figure`` is shown with its interval.
        signed: columns whose numbers are differences, shown with their sign.
    """

    title: str
    columns: list[str]
    rows: list[list[Cell]]
    signed: list[str] = []


class Findings(Record):
    """What came of an experiment; kept as ``results.json`` in its folder.

    Attributes:
        experiment: name of the experiment.
        paper: figure or table of the paper.
        claim: what the paper says there.
        answer: whether that was found here, as far as the intervals allow.
        verdict: what was found, in words.
        method: how, in words: what was compared, on what, and what was corrected for.
        tables: the figures.
        facts: pipeline, prompts, images and so on, for people.
        settings: everything that decided the figures, without secrets.
        intervals: what intervals allow for.
        folder: where its page and journal are, as it was given.
        created: time of day, ISO 8601.
    """

    experiment: str
    title: str
    paper: str
    claim: str
    answer: Answer
    verdict: str
    method: str
    tables: list[Table]
    facts: dict[str, str]
    settings: dict[str, object]
    intervals: str = BOOTSTRAP
    folder: str
    calibri_version: str
    created: str

    def __repr__(self) -> str:
        """The outcome in words; fields have the figures."""
        return f"<experiment {self.experiment}: {self.verdict}>"

    __str__ = __repr__


@dataclass(frozen=True)
class Chart:
    """A chart that can be drawn for a width in pixels; ``narrow`` is that on a phone."""

    name: str
    draw: Callable[[float], Markup]
    narrow: float = 330.0


@dataclass(frozen=True)
class Drawing:
    """Charts that belong together.

    Attributes:
        title: of all.
        lead: how to read them.
        charts: beside each other, ``columns`` in a row.
        legend: class of the style sheet to what it stands for.
    """

    title: str
    lead: str
    charts: tuple[Chart, ...]
    columns: int = 1
    legend: tuple[tuple[str, str], ...] = ()


def depth_drawing(
    title: str,
    lead: str,
    sites: Sequence[SiteRecord],
    values: Mapping[str, Figure],
    base: float,
) -> Drawing:
    """Draw figures of coefficients along the network.

    Args:
        title: of the drawing.
        lead: how to read it.
        sites: of the transformer, with the names of the coefficients.
        values: coefficient name to figure.
        base: value of the original model, where a line is drawn.
    """
    marks, stacks, legend = network.place_figures(sites, values)
    draw = partial(charts.depth, marks, stacks, title, base=base)
    chart = Chart("", draw, narrow_depth(stacks))
    return Drawing(title, lead, (chart,), legend=legend)


def curve_drawing(
    title: str, lead: str, lines: Mapping[str, Sequence[Line]], x_name: str, columns: int = 1
) -> Drawing:
    """Draw figures against a number, one chart for each name of ``lines``."""
    drawn = (Chart(name, partial(curves, own, x_name, name)) for name, own in lines.items())
    legend = {line.style: line.label for own in lines.values() for line in own if line.label}
    return Drawing(title, lead, tuple(drawn), columns, tuple(legend.items()))


def forest_drawing(
    title: str, lead: str, rows: Mapping[str, Sequence[tuple[str, Figure]]], axis: str
) -> Drawing:
    """Draw differences with their intervals, one chart for each name of ``rows``.

    Args:
        title: of all.
        lead: how to read them.
        rows: label and difference.
        axis: what is subtracted from what.
    """
    drawn = (Chart(k, partial(charts.forest, own, k, axis=axis)) for k, own in rows.items())
    return Drawing(title, lead, tuple(drawn), min(2, len(rows)))


def search_drawings(search: SearchResult) -> tuple[Drawing, ...]:
    """Draw how a search went, as the report of a run does."""
    drawings = {
        "Gain over the original": charts.gain_curve,
        "Objective on each bucket of prompts": charts.reward_curve,
        "Sigma, the step size of the search": charts.sigma_curve,
    }
    return tuple(
        Drawing(title, "", (Chart("", partial(draw, search)),)) for title, draw in drawings.items()
    )


def render_findings(findings: Findings, drawings: Sequence[Drawing]) -> str:
    """Draw an experiment as one self-contained HTML page; every text in it is escaped."""
    drawn = [(d, [(c.name, _chart(c, d.columns)) for c in d.charts]) for d in drawings]
    template = environment().get_template("findings.html.jinja")
    settings = json.dumps(findings.settings, indent=2, ensure_ascii=False, default=str)
    return template.render(findings=findings, drawings=drawn, settings=settings, cell=cell)


def _chart(chart: Chart, columns: int) -> Markup:
    return both_widths(chart.draw, columns, chart.narrow)


def standalone(drawing: Drawing) -> str:
    """Draw the first chart of a drawing as an SVG file with the style sheet of the pages."""
    drawn = drawing.charts[0].draw(1040.0)
    loader = environment().loader
    assert loader is not None
    style = loader.get_source(environment(), "style.css")[0]
    head, _, rest = drawn.partition(">")
    return f'{head} xmlns="http://www.w3.org/2000/svg"><style>{style}</style>{rest}'


def cell(value: Cell, *, signed: bool) -> tuple[str, str]:
    """Write a cell for people: what it says, and its interval or nothing."""
    if isinstance(value, Figure):
        return mean(value, sign=signed), interval(value, sign=signed)
    if isinstance(value, float):
        return number(value, 4, sign=signed), ""
    return "\N{EN DASH}" if value is None else str(value), ""
