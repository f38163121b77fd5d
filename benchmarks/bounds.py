"""Long searches without noise whose optimum lies on the bounds, beside pycma's.

    python -m benchmarks.bounds

Once found, such an optimum must not be lost again. What is shown is how far below it the true value
of the mean is: at some generations, and at worst in the second half of the search.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable

import numpy as np

from benchmarks.landscapes import BOUNDED, HIGH, LOW, NO_NOISE, Problem
from calibri.arrays import Vector
from calibri.search import Setup, method_info

Score = Callable[[Vector], Vector]
SIGMA0 = 0.15


def ours(score: Score, dimension: int, seed: int, generations: int) -> Vector:
    """Means of the product's search, float64 (generations, n)."""
    info = method_info("calibri")
    search = info.make(
        Setup(
            start=np.ones(dimension),
            basis=np.eye(dimension),
            bounds=np.tile((LOW, HIGH), (dimension, 1)),
            seed=seed,
            popsize=info.popsize(dimension),
            sigma0=SIGMA0,
            learning_rate=0.0,
            tail=0.25,
        )
    )
    means = []
    for _ in range(generations):
        candidates = search.ask()
        search.tell(candidates, score(np.array(candidates)))
        means.append(search.mean)
    return np.array(means)


def pycma(score: Score, dimension: int, seed: int, generations: int) -> Vector:
    """Means of pycma with the same population and its own penalty, float64 (generations, n)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of matplotlib, which it does without
        import cma
    options = {
        "bounds": [LOW, HIGH],
        "BoundaryHandler": cma.BoundPenalty,
        "popsize": method_info("calibri").popsize(dimension),
        "seed": seed + 1,  # it takes a seed of 0 for the time
        "verbose": -9,
        "verb_log": 0,
    }
    search = cma.CMAEvolutionStrategy(np.ones(dimension), SIGMA0, options)
    means = []
    for _ in range(generations):
        candidates = search.ask()
        search.tell(candidates, list(-score(np.array(candidates))))
        means.append(np.clip(search.result.xfavorite, LOW, HIGH))
    return np.array(means)


def row(landscape: str, dimension: int, seed: int, generations: int) -> str:
    """One line of the table."""
    problem = Problem(landscape, dimension, seed)
    prompts, rng = np.arange(1), np.random.default_rng(0)
    cells = []
    for search in (ours, pycma):
        means = search(
            lambda x: problem.scores(x, prompts, NO_NOISE, rng)[:, 0], dimension, seed, generations
        )
        lost = -problem.truth(means)
        shown = [lost[round(share * generations) - 1] for share in (0.25, 0.5, 1.0)]
        cells += [f"{value:8.1e}" for value in (*shown, lost[generations // 2 :].max())]
    return f"| {landscape} | {dimension} | {seed} | " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--generations", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--dimensions", type=int, nargs="+", default=[58])
    arguments = parser.parse_args()
    columns = ["a quarter", "half", "the end", "worst since half"]
    titles = [f"{who}: {column}" for who in ("ours", "pycma") for column in columns]
    print("| landscape | n | seed | " + " | ".join(titles) + " |")
    print("|---" * (3 + len(titles)) + "|")
    for landscape in BOUNDED:
        for dimension in arguments.dimensions:
            for seed in range(arguments.seeds):
                print(row(landscape, dimension, seed, arguments.generations), flush=True)


if __name__ == "__main__":
    main()
