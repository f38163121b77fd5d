"""The search against the paper's on synthetic rewards whose truth is known.

    python -m benchmarks.synthetic            # resumes; prints the tables
    python -m benchmarks.synthetic --show     # prints the tables of what is there

The rewards are those of ``benchmarks.landscapes``. Both searches run through ``calibri.search``;
images are counted as the product counts them, without validation for either.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.landscapes import LANDSCAPES, NOISES, POOL, Problem
from calibri.arrays import Vector
from calibri.search import (
    SearchMethod,
    Setup,
    bucket_size,
    first_prompts,
    images_of_generation,
    method_info,
    race_scores,
    reached_plateau,
    select,
    survivors,
)
from calibri.search.averaging import tail_mean
from calibri.seeds import derive_seed

RESULTS = Path(__file__).parent / "results" / "synthetic.json"
DIMENSIONS = (58, 115, 216, 482)
SEEDS = 20
VALIDATION_PROMPTS, VALIDATE_EVERY, PLATEAU = 192, 5, 8
RESAMPLES = 1_000
GRID = 20


@dataclass(frozen=True)
class Settings:
    """What decides a search; the defaults are the product's."""

    method: str = "calibri"
    sigma0: float = 0.15
    buckets: tuple[int, int] = (8, 16)
    race: tuple[float, float] = (0.25, 0.5)
    tail: float = 0.25
    scores_original: bool = True

    def images(self, dimension: int, bucket: int) -> int:
        popsize = method_info(self.method).popsize(dimension)
        images = images_of_generation(popsize, bucket, *self.race)
        return images if self.scores_original else images - bucket


OURS = Settings()
# Spec section 3; the paper does not score the original beside the candidates.
REFERENCE = Settings("reference", 0.25, (16, 16), (1.0, 1.0), scores_original=False)


def budget_of(dimension: int, noise: str) -> int:
    """Images of the reference: fewer where it ends below the original in every landscape."""
    if dimension == 482:
        return 12_800
    return 25_600 if dimension == 216 and noise != "low" else 51_200


@dataclass
class Trace:
    """What a search did: images so far and means, by generation."""

    images: list[int] = field(default_factory=list)
    means: list[Vector] = field(default_factory=list)
    luckiest: tuple[float, Vector | None] = (-np.inf, None)

    def tails(self, fraction: float) -> Vector:
        return np.array([tail_mean(self.means[: i + 1], fraction) for i in range(len(self.means))])


@cache
def plan(settings: Settings, dimension: int, budget: int) -> list[int]:
    """Bucket sizes of as many generations as the budget pays for."""
    generations = 0
    buckets: list[int] = []
    while True:
        longer = [
            bucket_size(*settings.buckets, generation, generations + 1)
            for generation in range(generations + 1)
        ]
        if sum(settings.images(dimension, k) for k in longer) > budget:
            return buckets
        generations, buckets = generations + 1, longer


def run(problem: Problem, noise: str, seed: int, settings: Settings, budget: int) -> Trace:
    dimension = len(problem.optimum)
    info = method_info(settings.method)
    search = info.make(
        Setup(
            start=np.ones(dimension),
            basis=np.eye(dimension),
            bounds=np.tile((-1.0, 2.0), (dimension, 1)),
            seed=seed,
            popsize=info.popsize(dimension),
            sigma0=settings.sigma0,
            learning_rate=0.0,  # nothing here has a gradient
            tail=settings.tail,
        )
    )
    trace, images = Trace(), 0
    for generation, bucket in enumerate(plan(settings, dimension, budget)):
        rng = np.random.default_rng(derive_seed(seed, "images", noise, generation))
        prompts = rng.choice(POOL, bucket, replace=False)
        _generation(problem, noise, settings, search, prompts, rng, trace)
        images += settings.images(dimension, bucket)
        trace.images.append(images)
    return trace


def _generation(
    problem: Problem,
    noise: str,
    settings: Settings,
    search: SearchMethod,
    prompts: Vector,
    rng: np.random.Generator,
    trace: Trace,
) -> None:
    candidates = np.array(search.ask())
    # The original's row is scored either way: the draws of both searches are alike, and the
    # reference is not told of it.
    original = np.ones((1, candidates.shape[1]))
    first = first_prompts(len(prompts), *settings.race)
    table = problem.scores(np.concatenate([original, candidates]), prompts[:first], noise, rng)
    scores = table[1:].mean(axis=1)
    if first < len(prompts):
        partial = scores
        kept = survivors(partial, settings.race[1])
        rows = np.concatenate([original, candidates[kept]])
        rest = problem.scores(rows, prompts[first:], noise, rng)
        full = np.concatenate([table[1:][kept], rest[1:]], axis=1).mean(axis=1)
        scores = race_scores(partial, kept, full)
    search.tell(list(candidates), scores)
    best = int(np.argmax(scores))
    trace.luckiest = max(trace.luckiest, (scores[best], candidates[best]), key=lambda x: x[0])
    trace.means.append(search.mean)


@dataclass(frozen=True)
class Validation:
    """Checkpoints on held-out prompts, and what was made of them."""

    generations: list[int]
    returned: Vector
    stopped: int | None


def validate(problem: Problem, noise: str, seed: int, tails: Vector) -> Validation:
    """Return a checkpoint or the original, and say which checkpoint would have ended the search."""
    rng = np.random.default_rng(derive_seed(seed, "validation", noise))
    prompts = rng.choice(POOL, VALIDATION_PROMPTS, replace=False)
    original = np.ones((1, tails.shape[1]))
    last = len(tails) - 1
    generations = sorted({*range(VALIDATE_EVERY - 1, last, VALIDATE_EVERY), last})
    rows = tails[generations]
    table = problem.scores(np.concatenate([original, rows]), prompts, noise, rng)
    differences = table[1:] - table[0]
    gains = differences.mean(axis=1).tolist()
    looks = range(1, len(gains) + 1)
    chosen = select(differences, derive_seed(seed, "select"))
    return Validation(
        generations=generations,
        returned=original[0] if chosen is None else rows[chosen],
        stopped=next((i - 1 for i in looks if reached_plateau(gains[:i], PLATEAU)), None),
    )


def one_seed(landscape: str, dimension: int, noise: str, seed: int) -> dict[str, Any]:
    """Both searches on one problem, as true values."""
    problem, budget = Problem(landscape, dimension, seed), budget_of(dimension, noise)
    theirs = run(problem, noise, seed, REFERENCE, budget)
    ours = run(problem, noise, seed, OURS, budget)
    tails = ours.tails(OURS.tail)
    truth = problem.truth
    validation = validate(problem, noise, seed, tails)
    lucky = theirs.luckiest[1]
    assert lucky is not None
    return {
        "images": ours.images,
        "reference_images": theirs.images,
        "ours": truth(tails),
        "reference": truth(theirs.tails(REFERENCE.tail)),
        "shipped": float(truth(lucky[None])[0]),
        "mean": float(truth(theirs.means[-1][None])[0]),
        "chosen": float(truth(validation.returned[None])[0]),
        "original": float(truth(np.ones((1, dimension)))[0]),
        "stop": _stop(validation, problem, tails, ours.images),
    }


def cell(landscape: str, dimension: int, noise: str) -> dict[str, Any]:
    """All seeds of a cell, as means over seeds with bootstrap intervals."""
    seeds = [one_seed(landscape, dimension, noise, seed) for seed in range(SEEDS)]
    ours = np.array([s["ours"] for s in seeds])
    reference = np.array([s["reference"] for s in seeds])
    targets = np.array([[s["shipped"], s["mean"], s["reference"][-1]] for s in seeds])
    images = np.array(seeds[0]["images"])
    budget = seeds[0]["reference_images"][-1]
    rng = np.random.default_rng(derive_seed(0, "resample", landscape, dimension, noise))
    draws = rng.integers(SEEDS, size=(RESAMPLES, SEEDS))
    best = targets.mean(axis=0).max()
    return {
        "budget": budget,
        "fractions": [
            fraction(images / budget, ours, targets[:, i], draws) for i in range(targets.shape[1])
        ],
        "targets": targets.mean(axis=0).round(4).tolist(),
        "final": _figure(ours[:, -1], draws),
        "lead": _figure(ours[:, -1] - targets[:, 2], draws),
        "lead_over_best": round(float(ours[:, -1].mean() - best), 4),
        "chosen": _figure(np.array([s["chosen"] for s in seeds]), draws),
        "chosen_lead": _figure(np.array([s["chosen"] for s in seeds]) - targets[:, 0], draws),
        "worse_than_original": int(sum(s["chosen"] < s["original"] for s in seeds)),
        "curves": _curves(seeds, images, ours, reference),
        "stops": [s["stop"] for s in seeds],
    }


def fraction(shares: Vector, ours: Vector, targets: Vector, draws: Vector) -> list[float | None]:
    """Share of the reference's images after which the mean over seeds has reached the target."""

    def crossing(rows: Vector) -> float:
        reached = np.flatnonzero(ours[rows].mean(axis=0) >= targets[rows].mean())
        return float(shares[reached[0]]) if len(reached) else np.inf

    resampled = np.sort([crossing(rows) for rows in draws])
    low, high = resampled[[int(0.025 * RESAMPLES), int(0.975 * RESAMPLES) - 1]]
    figures = (crossing(np.arange(SEEDS)), low, high)
    return [None if math.isinf(x) else round(float(x), 4) for x in figures]


def _figure(values: Vector, draws: Vector) -> list[float]:
    low, high = np.quantile(values[draws].mean(axis=1), [0.025, 0.975])
    return [round(float(x), 4) for x in (values.mean(), low, high)]


def _curves(seeds: list[dict[str, Any]], images: Vector, ours: Vector, reference: Vector) -> Any:
    grid = np.linspace(1 / GRID, 1, GRID) * seeds[0]["reference_images"][-1]
    theirs = np.interp(grid, seeds[0]["reference_images"], reference.mean(axis=0))
    return {
        "ours": np.interp(grid, images, ours.mean(axis=0)).round(4).tolist(),
        "reference": theirs.round(4).tolist(),
    }


def _stop(
    validation: Validation, problem: Problem, tails: Vector, images: list[int]
) -> dict[str, Any]:
    """When the plateau test would have ended the search, and whether the truth still rose."""
    if validation.stopped is None:
        return {"share": None}
    seen = validation.stopped + 1
    generations = validation.generations[seen - seen // 2 : seen]
    gains = problem.truth(tails) - problem.truth(np.ones_like(tails[:1]))
    half = gains[generations]
    x = np.arange(len(half)) - (len(half) - 1) / 2
    rise = float(x @ half / (x @ x) * len(half))
    return {
        "share": round(images[generations[-1]] / images[-1], 4),
        "too_early": bool(rise > 0.2 * half.mean()),
        "missed": round(float(gains[-1] - half[-1]), 4),
    }


def cells() -> Iterator[tuple[str, int, str]]:
    for dimension, noise, landscape in product(DIMENSIONS, NOISES, LANDSCAPES):
        yield landscape, dimension, noise


def measure(processes: int) -> dict[str, Any]:
    """Run what is missing; every finished cell is kept at once."""
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    missing = [c for c in cells() if key_of(*c) not in results]
    with ProcessPoolExecutor(processes) as pool:
        jobs = {pool.submit(cell, *c): key_of(*c) for c in missing}
        for job in as_completed(jobs):
            results[jobs[job]] = job.result()
            write(results, RESULTS)
            print(f"{len(results)} cells: {jobs[job]}", flush=True)
    return results


def key_of(landscape: str, dimension: int, noise: str) -> str:
    return f"{dimension} {noise} {landscape}"


def write(results: dict[str, Any], path: Path) -> None:
    """Keep cells in their order, one a line."""
    path.parent.mkdir(exist_ok=True)
    ordered = {key_of(*c): results[key_of(*c)] for c in cells() if key_of(*c) in results}
    rows = ",\n".join(f"{json.dumps(key)}: {json.dumps(row)}" for key, row in ordered.items())
    draft = path.with_suffix(".draft")
    draft.write_text("{\n" + rows + "\n}\n")
    os.replace(draft, path)


def tables(results: dict[str, Any]) -> str:
    lines = [
        "| n, noise, landscape | images | reference ships / mean / tail | ours (tail) |"
        " lead over its tail | to T1 | to T2 | to T3 | behind until | returned |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for key, row in results.items():
        targets = " / ".join(f"{t:.2f}" for t in row["targets"])
        fractions = " | ".join(_show(f) for f in row["fractions"])
        lead = "{:+.2f} ({:+.2f}, {:+.2f})".format(*row["lead"])
        lines.append(
            f"| {key} | {row['budget']} | {targets} | {row['final'][0]:.2f} | {lead} |"
            f" {fractions} | {_behind(row['curves'])} | {row['chosen'][0]:.2f} |"
        )
    return "\n".join([*lines, "", *summary(results)])


def _behind(curves: dict[str, list[float]]) -> str:
    """Last twentieth of the budget at which our tail mean is below the reference's."""
    behind = np.flatnonzero(np.array(curves["ours"]) < np.array(curves["reference"]))
    return f"{(behind[-1] + 1) / GRID:.2f}" if len(behind) else "-"


def _show(fraction: list[float | None]) -> str:
    mean, low, high = ("never" if x is None else f"{x:.2f}" for x in fraction)
    return f"{mean} ({low}-{high})"


def summary(results: dict[str, Any]) -> Iterator[str]:
    rows = list(results.values())
    for i, name in enumerate(("T1", "T2", "T3")):
        fractions = [r["fractions"][i][0] or math.inf for r in rows]
        yield (
            f"{name}: {min(fractions):.3f} to {max(fractions):.3f} of the reference's images, "
            f"{sum(f > 0.25 for f in fractions)} of {len(rows)} cells above a quarter, "
            f"{sum(f > 1 for f in fractions)} worse than the reference"
        )
    behind = [k for k, r in results.items() if r["lead_over_best"] < 0]
    yield f"cells that end below the reference's best figure: {', '.join(behind) or 'none'}"
    stops = [s for r in rows for s in r["stops"]]
    ended = [s for s in stops if s["share"] is not None]
    early = sum(s["too_early"] for s in ended)
    yield f"plateau: {len(ended)} of {len(stops)} searches ended, {early} of them too early"
    leads = [r["chosen_lead"][0] for r in rows]
    yield (
        "what is returned against what the paper's procedure ships: "
        f"{min(leads):+.2f} to {max(leads):+.2f}"
    )
    worse = sum(r["worse_than_original"] for r in rows)
    yield f"returned vectors worse than the original: {worse} of {len(stops)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--show", action="store_true")
    arguments = parser.parse_args()
    shown = json.loads(RESULTS.read_text()) if arguments.show else measure(arguments.processes)
    print(tables(shown))


if __name__ == "__main__":
    main()
