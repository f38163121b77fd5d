"""What a run cost (Tab 5): images, hours and FLOPs, by phase."""

from __future__ import annotations

from pathlib import Path

from calibri import status
from calibri.experiments.kinds import Heading, OfRun, Outcome
from calibri.reporting import Cell, Table
from calibri.results import RunSummary


def _outcome(summary: RunSummary, run: Path) -> Outcome:
    spent = status(run)
    total = sum(spent.images.values())
    flops = "" if spent.petaflop is None else f" and {spent.petaflop * 1e3:,.4g} TFLOP"
    device = summary.machine.get("device", "?")
    rows: list[list[Cell]] = [
        [phase, images, f"{images / total:.0%}"] for phase, images in spent.images.items()
    ]
    return Outcome(
        answer="not judged",
        verdict=(
            f"{len(summary.search.generations)} generations of {summary.pipeline} took "
            f"{total:,} images{flops}: {spent.hours:.3g} hours of computing, "
            f"{spent.device_hours:.3g} over all workers, on {device}."
        ),
        method=(
            "Read from the journal of the run; interruptions do not count. FLOPs are counted, not "
            "timed. Images of the evaluation take more steps than those of the search."
        ),
        tables=[
            Table(
                title="Images by phase",
                columns=["phase", "images", "share"],
                rows=[*rows, ["all", total, "100%"]],
            )
        ],
    )


EXPERIMENT = OfRun(
    Heading(
        "What the run cost",
        "Table 5",
        "200 to 960 generations of FLUX.1-dev and Qwen-Image, 2,280 of SD3.5-medium; 32 hours of "
        "an H100 for FLUX.1-dev by block, 356 at most",
    ),
    _outcome,
)
