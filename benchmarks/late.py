"""What it costs in reward not to wait for the last images of a generation.

    python -m benchmarks.late

A search that is told when 90% of the images of each part of a generation are there has more
generations in the same time, and each says less. Both are searches of the default size on the
rewards of ``benchmarks.landscapes``, whose truth is known; which images are late is drawn. What is
missing of a candidate is made up for as well as can be: its images are compared with those of the
others on the same prompts. Late images are dropped.
"""

from __future__ import annotations

import argparse
from itertools import product
from typing import Any

import numpy as np

from benchmarks.landscapes import LANDSCAPES, NOISES, POOL, Problem
from benchmarks.machine import save
from calibri.arrays import Scores, Vector
from calibri.config import SearchConfig
from calibri.search import (
    Setup,
    bucket_size,
    first_prompts,
    method_info,
    race_scores,
    survivors,
)
from calibri.search.averaging import tail_mean
from calibri.seeds import derive_seed

SEARCH = SearchConfig()
DIMENSIONS = (115,)
SEEDS = 10
LATE = 0.1
# Generations in the time of 20, by what telling early saves (benchmarks.scaling).
GENERATIONS = (20, 21, 22)
RESAMPLES = 2_000


def gain(problem: Problem, noise: str, seed: int, generations: int, late: float) -> float:
    """True reward of what a search ends with, over the original's."""
    dimension, info = len(problem.optimum), method_info(SEARCH.method)
    search = info.make(
        Setup(
            start=np.ones(dimension),
            basis=np.eye(dimension),
            bounds=np.tile(SEARCH.scale_bounds, (dimension, 1)),
            seed=seed,
            popsize=info.popsize(dimension),
            sigma0=SEARCH.sigma0,
            learning_rate=0.0,  # nothing here has a gradient
            tail=SEARCH.tail,
        )
    )
    means = []
    for generation in range(generations):
        size = bucket_size(SEARCH.bucket_size, SEARCH.final_bucket_size, generation, generations)
        rng = np.random.default_rng(derive_seed(seed, "images", noise, generation))
        prompts = rng.choice(POOL, size, replace=False)
        candidates = np.array(search.ask())
        search.tell(list(candidates), _told(problem, noise, candidates, prompts, rng, late))
        means.append(search.mean)
    ends = np.stack([np.ones(dimension), tail_mean(means, SEARCH.tail)])
    original, found = problem.truth(ends)
    return float(found - original)


def _told(
    problem: Problem,
    noise: str,
    candidates: Vector,
    prompts: Vector,
    rng: np.random.Generator,
    late: float,
) -> Scores:
    first = first_prompts(len(prompts), SEARCH.race_first, SEARCH.race_keep)

    def part(rows: Vector, some: Vector) -> Scores:
        table = problem.scores(rows, some, noise, rng)
        missing = rng.permutation(table.size)[: int(late * table.size)]
        table.ravel()[missing] = np.nan
        return table

    before = part(candidates, prompts[:first])
    partial = mean_of(before)
    kept = survivors(partial, SEARCH.race_keep)
    after = part(candidates[kept], prompts[first:])
    return race_scores(partial, kept, mean_of(np.hstack([before[kept], after])))


def mean_of(table: Scores) -> Scores:
    """Mean of each candidate over its images that are there, each against its prompt's mean.

    Args:
        table: (candidates, prompts), NaN where an image is late.

    Returns:
        float64 (candidates,); one without images is behind all others.
    """
    there = np.isfinite(table)
    count = np.maximum(1, there.sum(axis=0))
    against = np.where(there, table - np.nansum(table, axis=0) / count, 0.0)
    images = there.sum(axis=1)
    means = against.sum(axis=1) / np.maximum(1, images)
    means[images == 0] = means[images > 0].min() - 1.0
    return np.asarray(means)


def measured() -> dict[str, Any]:
    """Gains by noise and dimension: waiting for all, and how far from that the others are."""
    found: dict[str, Any] = {"late": LATE, "seeds": SEEDS, "landscapes": list(LANDSCAPES)}
    for noise, dimension in product(NOISES, DIMENSIONS):
        ways = {"all, 20 generations": (20, 0.0)}
        ways |= {f"90%, {count} generations": (count, LATE) for count in GENERATIONS}
        table = np.array(
            [
                [gain(problem, noise, seed, *way) for way in ways.values()]
                for landscape, seed in product(LANDSCAPES, range(SEEDS))
                for problem in [Problem(landscape, dimension, seed)]
            ]
        )
        found[f"{noise} noise, {dimension} numbers"] = dict(zip(ways, _figures(table), strict=True))
    return found


def _figures(table: Scores) -> list[list[float]]:
    """Mean gain of waiting for all; of the others the difference to it with its interval."""
    rng = np.random.default_rng(0)
    draws = rng.integers(len(table), size=(RESAMPLES, len(table)))
    found = [[round(float(table[:, 0].mean()), 4)]]
    for column in table.T[1:]:
        difference = column - table[:, 0]
        low, high = np.quantile(difference[draws].mean(axis=1), [0.025, 0.975])
        found.append([round(float(x), 4) for x in (difference.mean(), low, high)])
    return found


def main() -> None:
    """Measure, print and keep."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    figures = measured()
    for name, ways in figures.items():
        print(name, ways)
    save("late", figures)


if __name__ == "__main__":
    main()
