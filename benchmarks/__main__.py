"""Our figures against those of the reference procedure, on this machine: ``make bench``.

python -m benchmarks [--repeats 5] [--steps 8]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import machine, overhead, searches, throughput
from benchmarks.machine import Row

Bench = Callable[[], tuple[list[Row], dict[str, Any]]]


def run(benches: dict[str, Bench], console: Console) -> tuple[list[Row], dict[str, Any]]:
    """Run the benches one after the other."""
    rows: list[Row] = []
    figures: dict[str, Any] = {}
    for name, bench in benches.items():
        started = time.perf_counter()
        found, figures[name] = bench()
        rows += found
        console.print(f"{name}: {time.perf_counter() - started:.0f} s", style="dim")
    return rows, figures


def table(rows: list[Row]) -> Table:
    """Lay out the rows; medians with their range."""
    described = machine.describe()
    title = f"{described['processor']}, {described['cores']} cores, torch {described['torch']}"
    shown = Table("", "metric", "median (range)", "expected", title=title)
    for row in sorted(rows, key=lambda row: row.bench):
        shown.add_row(row.bench, row.metric, row.value, row.expected)
    return shown


def benches(pair: throughput.Pair, repeats: int) -> dict[str, Bench]:
    """What there is to run, in this order."""
    session = pair.session
    return {
        # First, while no prompt was ever encoded.
        "B2": lambda: throughput.encoder_calls(pair),
        "B1": lambda: throughput.throughput(pair, repeats),
        "B3": searches.images_to_targets,
        "B4": searches.selection,
        "B7": lambda: overhead.framework_time(session, repeats),
        "B8": lambda: overhead.invariance(session),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8)
    options = parser.parse_args()
    machine.quiet()
    console = Console(width=110)
    pair = throughput.make_pair(**{"sampling.num_inference_steps": options.steps})
    rows, figures = run(benches(pair, options.repeats), console)
    console.print(table(rows))
    machine.save("bench", figures)


if __name__ == "__main__":
    main()
