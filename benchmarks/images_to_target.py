"""Images that a search needs to reach what the reference procedure reaches, shipped pipeline.

For every seed the reference searches for some generations with the paper's settings. Its images
equal ours, so ours are scored in their place, which is faster. Then ``calibri calibrate``'s search
runs with its own settings. Vectors on both ways are scored anew on held-out prompts, which neither
search pays for. Three targets, from lenient to strict:

* shipped: the candidate that the reference returns, the luckiest that validated best;
* mean: the last mean of its distribution;
* tail: the average of its means over the last quarter.

Images of ours count everything: the original model in every generation, and the validation up to
and including the one that would choose this vector. The reference's validation is counted only for
what it ships, since a mean needs none. A target is reached where a point of the curve and the next
one are not below it.

    python -m benchmarks.images_to_target [--seeds 0 1 2 3 4] [--generations 40]
    python -m benchmarks.images_to_target --set search.method=gradient

Every seed is kept when it is done; running again computes the missing ones. Another method than the
default is kept in a file of its own.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks import machine
from benchmarks.reference import Gates, Search, Settings
from calibri.arrays import Vector
from calibri.coefficients import Coefficients
from calibri.config import RunConfig, load_config
from calibri.progress import Progress
from calibri.results import Figure
from calibri.runs import Session
from calibri.runs.loop import Step, ValidatedSearch
from calibri.sampling import Noise
from calibri.scoring import Evaluator, Ledger, MemoryRecords
from calibri.search.averaging import tail_mean
from calibri.statistics import bootstrap_mean

Curve = list[dict[str, float]]
TARGETS = ("shipped", "mean", "tail")
NAME = "images_to_target"


def images_to_return(session: Session, step: Step) -> int:
    """Images that it takes to return what a search has found after a generation.

    One validation of the vector, and before the first checkpoint of the original too.
    """
    is_first = step.generation.generation < session.config.search.validate_every
    return step.images + (2 if is_first else 1) * len(session.prompts.validation)


class ReferenceRun:
    """The reference's search, scored by our evaluator."""

    def __init__(self, session: Session, evaluator: Evaluator, settings: Settings) -> None:
        self._session = session
        self._evaluator = evaluator
        self._settings = settings
        self._gates = Gates(session.bench.pipe.transformer, settings.start_weights)
        self._gates.remove()
        self._search = Search(self._gates.start, self._gates.is_output, settings)
        self.images = self.validation_images = 0
        self.points: list[tuple[int, Vector]] = []
        self.chosen: tuple[Vector, float] = (self._gates.start, -math.inf)

    def coefficients(self, vector: Vector) -> Coefficients:
        """Name a vector of the reference as ours."""
        return Coefficients(
            granularity="gate",
            scales=tuple(self._gates.named(vector)),
            output_weights=tuple(vector[self._gates.is_output]),
            start_weights=self._settings.start_weights,
        )

    def run(self, generations: int) -> None:
        """Search, validating the luckiest candidate when its turn comes."""
        for number in range(generations):
            rng = np.random.default_rng([self._settings.seed, number])
            train, size = self._session.prompts.train, self._settings.bucket_size
            chosen = rng.choice(len(train), size, replace=False)
            noises = [Noise(train[i], int(rng.integers(2**31))) for i in chosen]
            candidates = self._search.ask()
            self._search.tell(candidates, self._scores("reference", candidates, noises))
            self.images += len(candidates) * len(noises)
            self.points.append((self.images, self._search.mean))
            if (number + 1) % self._settings.validate_every == 0 or number + 1 == generations:
                self._validate()

    def _validate(self) -> None:
        prompts = self._session.prompts.validation
        noises = self._session.noises("validation", 0, prompts)
        vector = self._search.best[0]
        reward = self._scores("reference validation", [vector], noises)[0]
        self.validation_images += len(noises)
        if reward > self.chosen[1]:
            self.chosen = (vector, reward)

    def _scores(
        self, phase: str, vectors: Sequence[Vector], noises: Sequence[Noise]
    ) -> list[float]:
        candidates = [self.coefficients(vector) for vector in vectors]
        measures = self._session.objective
        step = self._search.generation
        tables = self._evaluator.score(phase, step, candidates, noises, measures)
        return [float(mean) for mean in tables[self._session.mixture.names[0]].mean(axis=1)]


def held_out(
    session: Session, evaluator: Evaluator, phase: str, candidates: Sequence[Coefficients]
) -> list[dict[str, float]]:
    """Mean of every reward for each candidate, on prompts and noise that no search saw."""
    noises = session.noises("held out", 0, session.prompts.test)
    tables = evaluator.score(phase, 0, candidates, noises, tuple(session.bench.measures.rewards))
    return [
        {name: float(table[i].mean()) for name, table in tables.items()}
        for i in range(len(candidates))
    ]


def thinned(points: Sequence[tuple[int, Vector]], every: int) -> list[tuple[int, Vector]]:
    """Keep every so many points of a curve, the last one among them."""
    return list(points[::-1][::every][::-1])


def reached(curve: Curve, reward: str, target: float) -> float | None:
    """Images at which a curve reaches a target and does not fall below it at the next point."""
    above = [point[reward] >= target for point in curve]
    for i, point in enumerate(curve):
        if all(above[i : i + 2]):
            return point["images"]
    return None


def run_seed(config: RunConfig, generations: int, every: int) -> dict[str, Any]:
    """Run both searches with one seed and score what they went through."""
    session = Session(config)
    with session.evaluator(Ledger(MemoryRecords()), images=10**6) as evaluator:
        ours = ValidatedSearch(session, evaluator, Progress())
        points = [(images_to_return(session, step), step.vector) for step in ours]
        returned, _ = ours.result()
        ours_images = evaluator.images
        sampling = config.sampling
        settings = Settings(sampling.num_inference_steps, sampling.guidance_scale, seed=config.seed)
        theirs = ReferenceRun(session, evaluator, settings)
        theirs.run(generations)
        our_points = thinned(points, max(1, every // 2))
        their_points = thinned(theirs.points, every)
        tail = tail_mean([mean for _, mean in theirs.points], 0.25)
        space = session.space
        found = held_out(
            session,
            evaluator,
            "held out",
            [
                *(space.coefficients(v) for v in (space.start, returned)),
                *(theirs.coefficients(v) for v in (theirs.chosen[0], tail)),
                *(space.coefficients(v) for _, v in our_points),
                *(theirs.coefficients(v) for _, v in their_points),
            ],
        )
    original, our_final, shipped, averaged, *rest = found
    our_curve, their_curve = (
        [{"images": images, **scores} for (images, _), scores in zip(kept, part, strict=True)]
        for kept, part in (
            (our_points, rest[: len(our_points)]),
            (their_points, rest[len(our_points) :]),
        )
    )
    return {
        "objective": session.mixture.names[0],
        "original": original,
        "ours": {"images": ours_images, "returned": our_final, "curve": our_curve},
        "reference": {
            "images": theirs.images,
            "validation_images": theirs.validation_images,
            "shipped": shipped,
            "mean": rest[-1],
            "tail": averaged,
            "curve": their_curve,
        },
    }


def fractions(record: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Compare images to each target with those of the reference, for one seed.

    Returns:
        By target: ``ours`` images, or None when it was not reached; ``of_budget``, the fraction of
        all images of the reference; for its mean also ``of_first``, the fraction of those after
        which the reference first reached it. A target that was not reached counts as all images of
        our search and at least 1: the true fraction is larger.
    """
    reward, theirs = record["objective"], record["reference"]
    found: dict[str, dict[str, Any]] = {}
    for name in TARGETS:
        target = theirs[name][reward]
        images = reached(record["ours"]["curve"], reward, target)
        budget = theirs["images"] + (theirs["validation_images"] if name == "shipped" else 0)
        found[name] = {"target": target, "ours": images}
        found[name]["of_budget"] = _fraction(record, images, budget)
        if name == "mean":
            first = reached(theirs["curve"], reward, target) or budget
            found[name] |= {"reference_first": first, "of_first": _fraction(record, images, first)}
    return found


def _fraction(record: dict[str, Any], images: float | None, theirs: float) -> float:
    if images is None:
        return max(1.0, float(record["ours"]["images"] / theirs))
    return images / theirs


def geometric_mean(values: Sequence[float]) -> Figure:
    """Geometric mean over seeds with its bootstrap interval."""
    figure = bootstrap_mean([math.log(value) for value in values], seed=0)
    low, mean, high = (math.exp(v) for v in (figure.low, figure.mean, figure.high))
    return Figure(mean=mean, low=low, high=high, n=figure.n)


def summary(seeds: dict[str, Any]) -> dict[str, Any]:
    """Average over seeds; intervals need at least two."""
    compared = [fractions(record) for record in seeds.values()]
    kinds = [(name, "of_budget") for name in TARGETS] + [("mean", "of_first")]
    lines = {}
    for name, kind in kinds:
        values = [found[name][kind] for found in compared]
        lines[f"{name}, {kind}"] = {
            "fractions": values,
            "not_reached": sum(found[name]["ours"] is None for found in compared),
            "geometric_mean": geometric_mean(values).model_dump() if len(values) > 1 else None,
        }
    return lines


def show(lines: dict[str, Any]) -> Table:
    """Lay out the summary."""
    shown = Table("target", "fraction of the reference's images", "by seed", "not reached")
    for name, line in lines.items():
        mean = line["geometric_mean"]
        text = f"{mean['mean']:.2f} [{mean['low']:.2f}, {mean['high']:.2f}]" if mean else ""
        by_seed = ", ".join(f"{value:.2f}" for value in line["fractions"])
        shown.add_row(name, text, by_seed, str(line["not_reached"]))
    return shown


def ends(seeds: dict[str, Any]) -> Table:
    """Lay out held-out rewards at the end of both searches, averaged over seeds."""
    names = next(iter(seeds.values()))["original"]
    shown = Table("held out, at the end", *names)
    places: dict[str, Callable[[dict[str, Any]], dict[str, float]]] = {
        "original": lambda record: record["original"],
        "ours": lambda record: record["ours"]["returned"],
        "reference, shipped": lambda record: record["reference"]["shipped"],
        "reference, mean after 3/4 of its generations": lambda record: record["reference"]["curve"][
            (3 * len(record["reference"]["curve"]) - 1) // 4
        ],
        "reference, mean": lambda record: record["reference"]["mean"],
        "reference, tail": lambda record: record["reference"]["tail"],
    }
    for label, place in places.items():
        values = [np.mean([place(record)[name] for record in seeds.values()]) for name in names]
        shown.add_row(label, *(f"{value:.4f}" for value in values))
    return shown


def name_of(config: RunConfig) -> str:
    """Name of the kept figures."""
    method = config.search.method
    return NAME if method == RunConfig().search.method else f"{NAME}_{method}"


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """Everything but the seed that decides the figures."""
    config = load_config(overrides=options.set)
    return {
        "generations": options.generations,
        "every": options.every,
        "config": config.model_dump(mode="json", exclude={"seed", "device"}),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--generations", type=int, default=40, help="of the reference")
    parser.add_argument("--every", type=int, default=4, help="generations between points")
    parser.add_argument("--set", action="append", default=[], help="key=value of our search")
    parser.add_argument("--folder", type=Path, default=machine.RESULTS)
    options = parser.parse_args(arguments)
    machine.quiet()
    console = Console(width=120)
    settings = settings_of(options)
    name = name_of(load_config(overrides=options.set))
    kept = machine.load(name, options.folder) or {}
    seeds: dict[str, Any] = kept["seeds"] if kept.get("settings") == settings else {}
    for seed in options.seeds:
        if str(seed) in seeds:
            continue
        started = time.perf_counter()
        config = load_config(overrides=options.set, values={"seed": seed})
        seeds[str(seed)] = run_seed(config, options.generations, options.every)
        seconds = time.perf_counter() - started
        figures = {"settings": settings, "seeds": seeds, "summary": summary(seeds)}
        machine.save(name, figures, options.folder)
        console.print(f"seed {seed}: {seconds:.0f} s", style="dim")
    console.print(show(summary(seeds)), ends(seeds))


if __name__ == "__main__":
    main()
