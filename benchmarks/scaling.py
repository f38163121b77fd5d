"""How a search scales to many workers, simulated, with and without what fills its gaps.

    python -m benchmarks.scaling

A generation ends when its last unit does, and so do its race and its checkpoint: with many workers
much of a cluster waits. Sizes of generations, checkpoints and final figures are those of the
configuration; times of units vary as those in ``benchmarks/results/unit_times.json``, scaled to the
jitter asked for. Deterministic.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.machine import RESULTS
from benchmarks.scheduling import Cluster, Simulation, Unit
from calibri.config import EvaluationConfig, SearchConfig
from calibri.runs.journal import read_journal
from calibri.search import bucket_size, first_prompts, num_survivors

SEED = 0
WORKERS = (8, 64, 512)
FLUX_SECONDS = 339 / 320  # FLUX.1-dev at 512 px, 15 steps, on an H100 (docs/cost.md)
RECORDED = RESULTS / "unit_times.json"
# Seconds of the driver for a unit: 760 a second went to actors on the same two cores, as
# ``benchmarks.cluster`` recorded (docs/cluster.md).
DISPATCH = 1 / 760


@dataclass(frozen=True)
class Sizes:
    """What a run asks for.

    Attributes:
        search: how it searches.
        parameters: numbers that are searched.
        unit: images that go through the pipeline together.
        seconds: of an image on the reference GPU.
        evaluation: the final figures.
        with_original: whether the original model is scored in every generation and at checkpoints.
    """

    search: SearchConfig
    parameters: int
    unit: int
    evaluation: EvaluationConfig = EvaluationConfig()
    seconds: float = FLUX_SECONDS
    with_original: bool = True


@dataclass(frozen=True)
class Measures:
    """What fills the gaps.

    Attributes:
        copies: idle workers compute the last units once more.
        beside: the first units of the next generation fill the gap at the end of a checkpoint.
        figures: the final figures of the original fill gaps, from the first generation on.
        later: a checkpoint fills gaps until the next one is due; its verdict comes as late.
        share: of the units of a generation, with which the search goes on.
        static: fixed shares of every set of units instead of a queue.
    """

    copies: bool = False
    beside: bool = False
    figures: bool = False
    later: bool = False
    share: float = 1.0
    static: bool = False


@dataclass(frozen=True)
class Generation:
    """Units that are waited for together: all vectors, those that stayed, the checkpoint if any."""

    first: list[Unit]
    rest: list[Unit]
    validation: list[Unit]


@dataclass(frozen=True)
class Run:
    """All units of a run.

    Attributes:
        generations: of its search.
        original: final figures of the original, by the multiple of the steps.
        calibrated: those of the calibration.
    """

    generations: list[Generation] = field(default_factory=list)
    original: list[list[Unit]] = field(default_factory=list)
    calibrated: list[list[Unit]] = field(default_factory=list)

    @property
    def units(self) -> Iterator[Unit]:
        """All of them."""
        for generation in self.generations:
            yield from (*generation.first, *generation.rest, *generation.validation)
        yield from itertools.chain(*self.original, *self.calibrated)

    @property
    def cost(self) -> float:
        """Seconds on the reference GPU."""
        return sum(unit.cost for unit in self.units)


def plan(sizes: Sizes) -> Run:
    """Lay out a run from its first generation to its last figure."""
    search, evaluation, numbers = sizes.search, sizes.evaluation, itertools.count()

    def units(images: int, steps: int = 1) -> list[Unit]:
        rest = images % sizes.unit
        counts = [sizes.unit] * (images // sizes.unit) + [rest] * bool(rest)
        return [Unit(next(numbers), count * steps * sizes.seconds) for count in counts]

    run, popsize = Run(), search.population(sizes.parameters)
    for number in range(search.generations):
        last = search.final_bucket_size
        bucket = bucket_size(search.bucket_size, last, number, search.generations)
        first = first_prompts(bucket, search.race_first, search.race_keep)
        kept = num_survivors(popsize, search.race_keep)
        done = number + 1
        validated = done % search.validate_every == 0 or done == search.generations
        # The first checkpoint scores the original too.
        vectors = validated + (validated and sizes.with_original and done <= search.validate_every)
        generation = Generation(
            first=units((popsize + sizes.with_original) * first),
            rest=units((kept + sizes.with_original) * (bucket - first)),
            validation=units(vectors * search.num_validation_prompts),
        )
        run.generations.append(generation)
    images = evaluation.num_prompts * evaluation.images_per_prompt
    for steps in evaluation.original_multiples:
        run.original.append(units(images, steps))
    for steps in evaluation.calibrated_multiples:
        run.calibrated.append(units(images, steps))
    return run


def seconds(plan: Run, cluster: Cluster, measures: Measures, seed: int) -> tuple[float, float]:
    """Simulate a run.

    Returns:
        Seconds until the last generation is told, and until the last figure is there.
    """
    run = Simulation(cluster, seed, copies=measures.copies, static=measures.static)
    for units in reversed(plan.original) if measures.figures else ():
        run.submit(units, urgent=False)
    checkpoint: list[Unit] = []
    for number, generation in enumerate(plan.generations):
        run.request(generation.first)
        run.wait(generation.first, 1.0 if generation.rest else measures.share)
        run.request(generation.rest)
        run.wait(generation.rest, measures.share)
        searched = run.now
        if not generation.validation:
            continue
        if measures.later:
            run.request(checkpoint)
            run.wait(checkpoint)
            run.submit(generation.validation, urgent=False)
        else:
            following = plan.generations[number + 1 : number + 2]
            for other in following if measures.beside else ():
                run.submit(other.first, urgent=False)
            run.request(generation.validation)
            run.wait(generation.validation)
        checkpoint = generation.validation
    run.request(checkpoint)
    run.wait(checkpoint)
    sets = [*plan.calibrated, *plan.original]
    for units in [list(itertools.chain(*sets))] if measures.figures else sets:
        run.request(units)
        run.wait(units)
    return searched, run.now


def efficiency(plan: Run, cluster: Cluster, taken: float) -> float:
    """Share of the cluster that did what had to be done."""
    return plan.cost / sum(cluster.speeds) / taken


QUEUE = Measures()
OURS = Measures(copies=True, beside=True, figures=True)
WAYS: Mapping[str, Measures] = {
    "static shards, as the paper's": Measures(static=True),
    "a queue": QUEUE,
    "+ copies of the last units": replace(QUEUE, copies=True),
    "+ the next generation begun beside a checkpoint": replace(QUEUE, beside=True),
    "+ final figures of the original in gaps": replace(QUEUE, figures=True),
    "all three, as Calibri does": OURS,
    "not built: verdicts a checkpoint late": replace(OURS, later=True),
    "not built: told at 90%": replace(OURS, share=0.9),
}

_DEFAULT = SearchConfig()
# The authors' loop scores 496 prompts every tenth generation (docs/cost.md).
_PAPER = SearchConfig(method="reference", num_validation_prompts=496)
_LARGE = _DEFAULT.model_copy(update={"bucket_size": 64, "generations": 5})
RUNS: Mapping[str, Sizes] = {
    "FLUX.1-dev, gate, as configured": Sizes(_DEFAULT, 115, 1),
    "FLUX.1-dev, gate, units of 4 images": Sizes(_DEFAULT, 115, 4),
    "FLUX.1-dev, gate, 8 times the prompts, 5 generations": Sizes(_LARGE, 115, 1),
    "FLUX.1-dev, gate, the paper's procedure": Sizes(_PAPER, 115, 1, with_original=False),
}


def clusters(count: int) -> dict[str, Cluster]:
    """The same number of workers under several conditions."""
    even = Cluster((1.0,) * count, recorded(), 0.05, dispatch=DISPATCH)
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


@dataclass(frozen=True)
class Part:
    """What is simulated together."""

    run: str
    workers: int
    conditions: tuple[str, ...]
    ways: tuple[str, ...]


def parts() -> Iterator[Part]:
    """List all that is simulated: less where nothing is to be seen."""
    small, coarse, large, paper = RUNS
    every, even, rough = tuple(clusters(2)), "5% jitter", "30% jitter"
    static, queue, *_, ours, _, early = WAYS
    few = (static, queue, ours, early)
    yield Part(small, 8, (even,), few)
    yield Part(small, 64, every, tuple(WAYS))
    yield Part(small, 512, (even, rough, "all of it"), few)
    yield Part(coarse, 64, (even, rough), (queue, ours))
    yield Part(coarse, 512, (even,), (queue, ours))
    yield Part(large, 64, (even, "all of it"), (queue, ours))
    yield Part(large, 512, every, few)
    for count in WORKERS:
        yield Part(paper, count, (even,), (static,))


def rows(part: Part) -> Iterator[dict[str, Any]]:
    """Simulate a part."""
    laid_out = plan(RUNS[part.run])
    for condition, way in itertools.product(part.conditions, part.ways):
        cluster = clusters(part.workers)[condition]
        searched, taken = seconds(laid_out, cluster, WAYS[way], SEED)
        yield {
            "run": part.run,
            "workers": part.workers,
            "condition": condition,
            "way": way,
            "efficiency": round(efficiency(laid_out, cluster, taken), 3),
            "search_hours": round(searched / 3600, 4),
            "hours": round(taken / 3600, 4),
        }


def table(part: Part, found: list[dict[str, Any]]) -> Table:
    """Lay out the efficiencies of a part: a line for each way."""
    shown = Table("", title=f"{part.run}, {part.workers} workers")
    for condition in part.conditions:
        shown.add_column(condition, justify="right")
    for way in part.ways:
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
    found: list[dict[str, Any]] = []
    for part in parts():
        more = list(rows(part))
        Console(width=120).print(table(part, more))
        found += more
    (RESULTS / "scaling.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
