"""How a search went (Supp Fig 4): sigma, reward and validated gain over its generations."""

from __future__ import annotations

from pathlib import Path

from calibri.errors import RunError
from calibri.experiments.kinds import Heading, OfRun, Outcome
from calibri.experiments.trials import level_with_best
from calibri.reporting import Cell, Table, search_drawings
from calibri.results import Checkpoint, Generation, RunSummary, SearchResult


def _outcome(summary: RunSummary, run: Path) -> Outcome:
    search = summary.search
    if not search.generations or not search.checkpoints:
        raise RunError(f"{run} has no generations to look at. Name a run of a search.")
    objective = _objective(summary)
    return Outcome(
        answer="not judged",
        verdict=_verdict(search, objective),
        method=(
            "A checkpoint is the result of the search so far, on prompts that it never saw, minus "
            "the original model on the same noise. The first one whose interval reaches the mean "
            "of the best is called level with it."
        ),
        tables=[_table(search, objective)],
        drawings=search_drawings(search),
    )


def _objective(summary: RunSummary) -> str:
    rewards = summary.config.get("rewards", {})
    return str(rewards.get("objective", "the objective")) if isinstance(rewards, dict) else ""


def _at(search: SearchResult, checkpoint: Checkpoint) -> Generation:
    """The generation after which a checkpoint was taken."""
    before = [g for g in search.generations if g.generation <= checkpoint.generation]
    return before[-1] if before else search.generations[0]


def _verdict(search: SearchResult, objective: str) -> str:
    first, last = search.generations[0], search.generations[-1]
    level = level_with_best(search.checkpoints)
    at, gain = _at(search, level), level.difference
    return (
        f"Sigma went from {first.sigma:.3g} to {last.sigma:.3g} in {len(search.generations)} "
        f"generations ({search.images:,} images). From generation {level.generation + 1} on, after "
        f"{at.images:,} images, the gain in {objective} was level with the best: {gain.mean:+.3f} "
        f"[{gain.low:+.3f}, {gain.high:+.3f}]."
    )


def _table(search: SearchResult, objective: str) -> Table:
    gain = f"gain in {objective}"
    rows: list[list[Cell]] = []
    for checkpoint in search.checkpoints:
        at = _at(search, checkpoint)
        note = "chosen" if checkpoint.chosen else "vetoed" if checkpoint.vetoed_by else ""
        label = str(checkpoint.generation + 1)
        rows.append([label, at.images, at.sigma, checkpoint.difference, note])
    columns = ["generation", "images", "sigma", gain, ""]
    return Table(title="Checkpoints", columns=columns, rows=rows, signed=[gain])


EXPERIMENT = OfRun(
    Heading(
        "How the search converged",
        "Supplement, figure 4",
        "a search may stop when sigma has fallen and the mean reward of the buckets has reached "
        "its plateau",
    ),
    _outcome,
)
