"""The page: everything put into one HTML file without scripts or remote parts."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from calibri.errors import RunError
from calibri.files import write_atomically
from calibri.reporting import charts, context, text
from calibri.reporting.metrics import METRICS
from calibri.reporting.network import Network, place_coefficients
from calibri.results import Evaluation, RunSummary
from calibri.runs import RunFolder
from calibri.signatures import typed

# Pixels: a chart across the page, and on a phone.
_WIDE, _NARROW = 1040.0, 330.0

_MAX_IMAGE_BYTES = 20 * 2**20


@typed
def report(run: Path | str) -> Path:
    """Write ``report.html`` of a finished run.

    Args:
        run: the run's folder.

    Returns:
        The file.

    Raises:
        RunError: there is no such run, it is not finished, or the file cannot be written.
    """
    folder = RunFolder.open(Path(run))
    summary = folder.read_results()
    if summary is None:
        raise RunError(
            f"{folder.path} has no results yet. Finish the run with `calibri resume {folder.path}`."
        )
    page = render_report(summary, sample_images(folder.images_path, summary))
    write_atomically(folder.report_path, page.encode())
    return folder.report_path


def sample_images(folder: Path, summary: RunSummary) -> dict[str, bytes]:
    """Read the pictures of a run's samples: file name to bytes."""
    names = {name for sample in summary.samples for name in sample.files.values()}
    # Only plain files of the run itself: a name from a foreign file must not lead elsewhere.
    paths = [folder / name for name in sorted(names) if Path(name).name == name]
    return {
        path.name: path.read_bytes()
        for path in paths
        if path.is_file() and not path.is_symlink() and path.stat().st_size <= _MAX_IMAGE_BYTES
    }


def render_report(summary: RunSummary, images: Mapping[str, bytes]) -> str:
    """Draw a run as one self-contained HTML page.

    Args:
        summary: the results of the run; every text in it is escaped.
        images: file name to PNG bytes, for the samples; a missing one leaves an empty tile.
    """
    network = place_coefficients(summary)
    return environment().get_template("page.html.jinja").render(
        summary=summary,
        details=context.verdict_details(summary.evaluation),
        key_numbers=context.key_numbers(summary),
        rows=context.sample_rows(summary, images),
        search=_search_charts(summary),
        network=network,
        depth=_depth_charts(network),
        config=json.dumps(summary.config, indent=2, ensure_ascii=False, default=str),
        **_evaluation_parts(summary.evaluation),
    )  # fmt: skip


def both_widths(
    draw: Callable[[float], Markup], columns: int = 1, narrow: float = _NARROW
) -> Markup:
    """Draw a chart for the page and for a phone; the style sheet shows the one that fits."""
    wide, slim = draw(_WIDE / columns), draw(narrow)
    return Markup(f'<div class="on-wide">{wide}</div><div class="on-narrow">{slim}</div>')


def _columns(count: int) -> int:
    """How many charts share a row, so that the last row is not nearly empty."""
    return 2 if count in (1, 2, 4) else 3


def _search_charts(summary: RunSummary) -> dict[str, Markup]:
    draw = {
        "reward": charts.reward_curve,
        "gain": charts.gain_curve,
        "sigma": charts.sigma_curve,
    }
    if not summary.search.generations:
        return {}
    return {name: both_widths(partial(chart, summary.search)) for name, chart in draw.items()}


def narrow_depth(stacks: Sequence[charts.Stack]) -> float:
    """Width in pixels of a chart along a network on a phone."""
    return max(_NARROW, 60.0 + 14.0 * sum(stack.count for stack in stacks))


def _depth_charts(network: Network) -> list[tuple[str, Markup]]:
    # A deep network is not squeezed onto a phone: it is drawn wider and scrolls in its box.
    narrow = narrow_depth(network.stacks)
    drawings = {
        panel.title: partial(
            charts.depth,
            panel.marks,
            network.stacks,
            f"Coefficients along the network {panel.title}".strip(),
        )
        for panel in network.panels
    }
    return [(title, both_widths(draw, narrow=narrow)) for title, draw in drawings.items()]


def _evaluation_parts(evaluation: Evaluation | None) -> dict[str, object]:
    if evaluation is None:
        return {"settings": [], "rewards": {}, "forests": [], "trends": []}
    forests = context.comparisons_by_reward(evaluation)
    trends = context.trends(evaluation)
    return {
        "settings": context.ordered_settings(evaluation),
        "rewards": context.rewards_of(evaluation),
        "metrics": [
            metric
            for metric in METRICS
            if any(getattr(setting, metric.name) is not None for setting in evaluation.settings)
        ],
        "forests": [
            (name, both_widths(partial(charts.forest, rows, name), _columns(len(forests))))
            for name, rows in forests.items()
        ],
        "trends": [
            (t, both_widths(partial(charts.over_steps, t.points, t.name), _columns(len(trends))))
            for t in trends
        ],
    }


def _finalize(value: object) -> object:
    is_text = isinstance(value, str) and not isinstance(value, Markup)
    return text.clean(value) if is_text else value  # type: ignore[arg-type]


def _marker(shape: str) -> Markup:
    return charts.marker(shape, 7.0, 7.0, 5.0)


@lru_cache
def environment(room: str = "calibri.reporting") -> Environment:
    """Templates of a room and, beside them, of this one, in which every text is escaped."""
    rooms = dict.fromkeys((room, "calibri.reporting"))
    made = Environment(
        loader=ChoiceLoader([PackageLoader(name, package_path="") for name in rooms]),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    helpers = (text.mean, text.interval, text.number, text.general, text.duration)
    made.filters.update({helper.__name__: helper for helper in helpers})
    made.filters.update(count=text.count, moment=text.moment)
    made.filters.update(marker=_marker, columns=_columns)
    return made
