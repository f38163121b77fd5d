"""B3 and B4: what the longer benchmarks of the search found, from the figures they keep.

``python -m benchmarks.synthetic`` and ``python -m benchmarks.images_to_target`` make them; both
take longer than the others together, so they are not run again here.
"""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any

from benchmarks.machine import RESULTS, Row, load

_TARGETS = ("what the reference ships", "its last mean", "its averaged means")
_NO_CELLS = "not measured; run python -m benchmarks.synthetic"
_NO_SEEDS = "not measured; run python -m benchmarks.images_to_target"


def images_to_targets(folder: Path = RESULTS) -> tuple[list[Row], dict[str, Any]]:
    """B3: fraction of the reference's images that our search needs to reach it."""
    rows, figures = _synthetic(folder)
    more, measured = _measured(folder)
    return [*rows, *more], figures | measured


def _synthetic(folder: Path) -> tuple[list[Row], dict[str, Any]]:
    cells = load("synthetic", folder)
    if not cells:
        return [Row("B3", "images to target, synthetic rewards", _NO_CELLS)], {}
    rows, figures = [], {}
    for place, target in enumerate(_TARGETS):
        # None: the target was never reached.
        found = [
            math.inf if (f := cell["fractions"][place][0]) is None else f for cell in cells.values()
        ]
        worse = sum(fraction > 1 for fraction in found)
        text = f"{statistics.median(found):.2f} ({min(found):.2f} to {max(found):.2f})"
        what = f"images to {target}, synthetic, {len(found)} cells"
        rows.append(Row("B3", what, text, "never > 1"))
        rows.append(Row("B3", f"cells above 1: {target}", str(worse), "0"))
        figures[target] = {
            "fractions": [None if math.isinf(f) else f for f in found],
            "cells_above_1": worse,
        }
    return rows, figures


def _measured(folder: Path) -> tuple[list[Row], dict[str, Any]]:
    kept = load("images_to_target", folder)
    if not kept:
        return [Row("B3", "images to target, shipped pipeline", _NO_SEEDS)], {}
    rows = []
    for name, line in kept["summary"].items():
        mean = line["geometric_mean"]
        if mean is not None:
            text = f"{mean['mean']:.2f} ({mean['low']:.2f} to {mean['high']:.2f})"
            what = f"images to target '{name}', shipped pipeline, {mean['n']} seeds"
            rows.append(Row("B3", what, text, "< 1"))
    return rows, {"shipped_pipeline": kept["summary"]}


def selection(folder: Path = RESULTS) -> tuple[list[Row], dict[str, Any]]:
    """B4: true value of the vector that a search returns, minus the reference's."""
    cells = load("synthetic", folder) or {}
    leads = {key: cell["chosen_lead"][0] for key, cell in cells.items() if "chosen_lead" in cell}
    what = "true value of what is returned, ours - reference"
    if not leads:
        return [Row("B4", what, _NO_CELLS)], {}
    values = list(leads.values())
    text = f"{statistics.median(values):+.2f} ({min(values):+.2f} to {max(values):+.2f})"
    behind = sum(value < 0.1 for value in values)
    rows = [
        Row("B4", f"{what}, synthetic, {len(values)} cells", text, ">= +0.1"),
        Row("B4", "cells below +0.1", str(behind), "0"),
    ]
    return rows, {"leads": leads, "cells_below_0.1": behind}
