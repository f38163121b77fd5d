"""How a search scales to many workers, simulated, with and without what fills its gaps.

    python -m benchmarks.scaling

A generation ends when its last unit does, and so do its race and its checkpoint: with many workers
much of a cluster waits. Sizes of generations are those of the configuration; times of units vary as
those in ``benchmarks/results/unit_times.json``, scaled to the jitter asked for. Deterministic.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.machine import RESULTS
from benchmarks.scheduling import Cluster, Simulation, Unit
from calibri.config import SearchConfig
from calibri.runs.journal import read_journal
from calibri.search import bucket_size, first_prompts, num_survivors

SEEDS = 1
WORKERS = (8, 64, 512)
FLUX_SECONDS = 339 / 320  # FLUX.1-dev at 512 px, 15 steps, on an H100 (docs/cost.md)
RECORDED = RESULTS / "unit_times.json"


@dataclass(frozen=True)
class Sizes:
    """What a run asks for.

    Attributes:
        search: how it searches.
        parameters: numbers that are searched.
        unit: images that go through the pipeline together.
        seconds: of an image on the reference GPU.
        with_original: whether the original model is scored in every generation.
    """

    search: SearchConfig
    parameters: int
    unit: int
    seconds: float = FLUX_SECONDS
    with_original: bool = True


@dataclass(frozen=True)
class Measures:
    """What fills the gaps.

    Attributes:
        copies: idle workers compute the last units once more.
        overlap: the units of a checkpoint fill the gaps of the next generation.
        early: those of the original model of the next generation fill those of this one.
        share: of the units of a generation, with which the search goes on.
        static: fixed shares of every set of units instead of a queue.
    """

    copies: bool = False
    overlap: bool = False
    early: bool = False
    share: float = 1.0
    static: bool = False


@dataclass(frozen=True)
class Generation:
    """Units that are waited for together: all candidates, those that stayed, a checkpoint.

    ``original`` are units of the original model, which depend on no candidate.
    """

    first: list[Unit]
    rest: list[Unit]
    original: list[Unit]
    validation: list[Unit]

    @property
    def cost(self) -> float:
        """Seconds on the reference GPU."""
        units = (*self.first, *self.rest, *self.original, *self.validation)
        return sum(unit.cost for unit in units)


def generations(sizes: Sizes) -> list[Generation]:
    """Units of a run from its first generation to its last checkpoint."""
    search, numbers = sizes.search, itertools.count()

    def units(images: int) -> list[Unit]:
        counts = [sizes.unit] * (images // sizes.unit) + [images % sizes.unit] * bool(
            images % sizes.unit
        )
        return [Unit(next(numbers), count * sizes.seconds) for count in counts]

    popsize, found = search.population(sizes.parameters), []
    for number in range(search.generations):
        last = search.final_bucket_size
        bucket = bucket_size(search.bucket_size, last, number, search.generations)
        first = first_prompts(bucket, search.race_first, search.race_keep)
        kept = num_survivors(popsize, search.race_keep)
        done = number + 1
        validated = done % search.validate_every == 0 or done == search.generations
        # The first checkpoint scores the original model, too.
        vectors = validated + (validated and done <= search.validate_every)
        found.append(
            Generation(
                first=units(popsize * first),
                rest=units(kept * (bucket - first)),
                original=units(bucket * sizes.with_original),
                validation=units(vectors * search.num_validation_prompts),
            )
        )
    return found


def seconds(plan: list[Generation], cluster: Cluster, measures: Measures, seed: int) -> float:
    """Simulate a run and say how long it takes."""
    run = Simulation(cluster, seed, copies=measures.copies, static=measures.static)
    checkpoints: list[Unit] = []
    for number, generation in enumerate(plan):
        run.hurry(generation.original)
        begun = measures.early and number > 0
        own = [] if begun else generation.original
        run.submit([*own, *generation.first])
        if measures.early and number + 1 < len(plan):
            run.submit(plan[number + 1].original, urgent=False)
        run.wait(generation.first, 1.0 if generation.rest else measures.share)
        run.submit(generation.rest)
        run.wait([*generation.rest, *generation.original], measures.share)
        run.submit(generation.validation, urgent=not measures.overlap)
        if measures.overlap:
            checkpoints += generation.validation
        else:
            run.wait(generation.validation)
    run.hurry(checkpoints)
    run.wait(checkpoints)
    return run.now


def efficiency(plan: list[Generation], cluster: Cluster, taken: float) -> float:
    """Share of the cluster that did what had to be done."""
    return sum(generation.cost for generation in plan) / sum(cluster.speeds) / taken


QUEUE = Measures()
ALL = Measures(copies=True, overlap=True, early=True)
WAYS: Mapping[str, Measures] = {
    "static shards, as the paper's": Measures(static=True),
    "a queue": QUEUE,
    "+ copies of the last units": replace(QUEUE, copies=True),
    "+ checkpoints beside the search": replace(QUEUE, overlap=True),
    "+ the next original early": replace(QUEUE, early=True),
    "+ all three": ALL,
    "+ all three, tell at 90%": replace(ALL, share=0.9),
}

_DEFAULT = SearchConfig()
# The authors' loop scores 496 prompts every tenth generation (docs/cost.md).
_PAPER = SearchConfig(method="reference", num_validation_prompts=496)
RUNS: Mapping[str, Sizes] = {
    "FLUX.1-dev, gate, as configured": Sizes(_DEFAULT, 115, 1),
    "FLUX.1-dev, gate, units of 4 images": Sizes(_DEFAULT, 115, 4),
    "FLUX.1-dev, gate, 8 times the prompts, 5 generations": Sizes(
        _DEFAULT.model_copy(update={"bucket_size": 64, "generations": 5}), 115, 1
    ),
    "FLUX.1-dev, gate, the paper's procedure": Sizes(_PAPER, 115, 1, with_original=False),
}


def clusters(count: int, times: tuple[float, ...]) -> dict[str, Cluster]:
    """The same number of workers under several conditions."""
    even = Cluster((1.0,) * count, times, 0.05)
    rough = replace(even, jitter=0.3)
    mixed = (1.0, 0.45) * (count // 2)  # an H100 and an A100 (docs/cost.md)
    return {
        "5% jitter": even,
        "30% jitter": rough,
        "two kinds of GPU": replace(even, speeds=mixed),
        "each lost once an hour": replace(even, lost_each=3600.0),
        "all of it": replace(rough, speeds=mixed, lost_each=3600.0),
    }


def recorded() -> tuple[float, ...]:
    """Times of equal units of one worker, in units of their mean."""
    return tuple(json.loads(RECORDED.read_text())["times"])


def rows(run: str, ways: Mapping[str, Measures] = WAYS) -> Iterator[dict[str, Any]]:
    """Simulate a run in every way, on clusters of every size and condition."""
    plan = generations(RUNS[run])
    for count in WORKERS:
        for condition, cluster in clusters(count, recorded()).items():
            for way, measures in ways.items():
                taken = [seconds(plan, cluster, measures, seed) for seed in range(SEEDS)]
                share = statistics.fmean(efficiency(plan, cluster, t) for t in taken)
                yield {
                    "run": run,
                    "workers": count,
                    "condition": condition,
                    "way": way,
                    "efficiency": round(share, 3),
                    "hours": round(statistics.fmean(taken) / 3600, 4),
                }


def table(run: str, count: int, found: list[dict[str, Any]]) -> Table:
    """Lay out the efficiencies of so many workers: a line for each way."""
    shown = Table("", title=f"{run}, {count} workers")
    for condition in dict.fromkeys(row["condition"] for row in found):
        shown.add_column(condition, justify="right")
    for way in dict.fromkeys(row["way"] for row in found):
        shown.add_row(way, *(f"{row['efficiency']:.2f}" for row in found if row["way"] == way))
    return shown


def record(journal: str) -> dict[str, Any]:
    """Take the times of full units of a run's generations, in units of their mean."""
    units = [r for r in read_journal(Path(journal)) if r["kind"] == "unit"]
    searched = [r for r in units if r["phase"] in ("search", "race")][1:]
    sizes = [len(next(iter(r["scores"].values()))) for r in searched]
    full = [r["seconds"] for r, size in zip(searched, sizes, strict=True) if size == max(sizes)]
    mean = statistics.fmean(full)
    return {
        "images": max(sizes),
        "mean_seconds": round(mean, 4),
        "deviation": round(statistics.pstdev(full) / mean, 4),
        "times": [round(time / mean, 4) for time in full],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", metavar="JOURNAL", help="Take the times of units from a run.")
    options = parser.parse_args()
    if options.record:
        RECORDED.write_text(json.dumps(record(options.record), indent=1) + "\n")
        return
    found = [row for run in RUNS for row in rows(run)]
    for run, count in itertools.product(RUNS, WORKERS):
        kept = [row for row in found if (row["run"], row["workers"]) == (run, count)]
        Console(width=120).print(table(run, count, kept))
    (RESULTS / "scaling.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
