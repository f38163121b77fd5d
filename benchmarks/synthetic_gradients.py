"""The search by gradients on the synthetic rewards of ``benchmarks.synthetic``.

    python -m benchmarks.synthetic_gradients            # runs what is missing; prints the table
    python -m benchmarks.synthetic_gradients --show     # prints the table of what is there

Gradients of images are those of ``benchmarks.landscapes``, as noisy and as unequal as on the
shipped pipeline. A default run goes through ``calibri.search``; images are counted as the product
counts them, one with its gradient as three, with those of the original and without validation.
Targets and the black box beside it are those of ``benchmarks/results/synthetic.json``, on the same
problems.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks import synthetic
from benchmarks.landscapes import POOL, Problem
from calibri.arrays import Vector
from calibri.config import SearchConfig
from calibri.planning import updates_per_generation
from calibri.search import IMAGES_PER_GRADIENT, SearchMethod, Setup, bucket_size
from calibri.seeds import derive_seed

RESULTS = synthetic.RESULTS.with_name("synthetic_gradients.json")
CONFIG = SearchConfig(method="gradient")


def run(problem: Problem, noise: str, seed: int) -> tuple[list[int], Vector]:
    """Images and truth of what the search would return, after every generation."""
    dimension = len(problem.optimum)
    search = _begun(dimension, seed)
    rng = np.random.default_rng(derive_seed(seed, "gradients", noise))
    updates = updates_per_generation(CONFIG, dimension)
    images, counted, returned = 0, [], []
    for generation in range(CONFIG.generations):
        first, last = CONFIG.bucket_size, CONFIG.final_bucket_size
        bucket = bucket_size(first, last, generation, CONFIG.generations)
        for _ in range(updates):
            (vector,) = asked = search.ask()
            prompts = rng.choice(POOL, bucket, replace=False)
            search.tell(asked, problem.gradients(vector, prompts, noise, rng))
        images += bucket * (IMAGES_PER_GRADIENT * updates + 1)
        counted.append(images)
        returned.append(search.result())
    return counted, problem.truth(np.array(returned))


def _begun(dimension: int, seed: int) -> SearchMethod:
    info = CONFIG.method_info
    return info.make(
        Setup(
            start=np.ones(dimension),
            basis=np.eye(dimension),
            bounds=np.tile((-1.0, 2.0), (dimension, 1)),
            seed=seed,
            popsize=info.popsize(dimension),
            sigma0=CONFIG.sigma0,
            learning_rate=CONFIG.learning_rate,
            tail=CONFIG.tail,
        )
    )


def cell(landscape: str, dimension: int, noise: str, kept: dict[str, Any]) -> dict[str, Any]:
    """All seeds of a cell, with the reference's tail mean and the black box of ``kept``."""
    problems = [Problem(landscape, dimension, seed) for seed in range(synthetic.SEEDS)]
    runs = [run(problem, noise, seed) for seed, problem in enumerate(problems)]
    images, ours = np.array(runs[0][0]), np.array([truth for _, truth in runs])
    target, budget = kept["targets"][2], kept["budget"]
    rng = np.random.default_rng(derive_seed(0, "resample", landscape, dimension, noise))
    draws = rng.integers(synthetic.SEEDS, size=(synthetic.RESAMPLES, synthetic.SEEDS))
    targets = np.full(synthetic.SEEDS, target)
    return {
        "budget": budget,
        "images": images.tolist(),
        "target": target,
        "fraction": synthetic.fraction(images / budget, ours, targets, draws),
        "black_box_fraction": kept["fractions"][2],
        "final": round(float(ours[:, -1].mean()), 4),
        "at_a_tenth": round(float(np.interp(0.1 * budget, images, ours.mean(axis=0))), 4),
        "black_box_final": kept["final"][0],
    }


def measure(dimensions: Sequence[int]) -> dict[str, Any]:
    """Run the cells that are missing; every finished one is kept at once."""
    suite = json.loads(synthetic.RESULTS.read_text())
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for landscape, dimension, noise in synthetic.cells():
        key = synthetic.key_of(landscape, dimension, noise)
        if dimension in dimensions and key in suite and key not in results:
            results[key] = cell(landscape, dimension, noise, suite[key])
            synthetic.write(results, RESULTS)
    return results


def table(results: dict[str, Any]) -> str:
    """Lay out a row for each number of coefficients and noise: landscapes averaged."""
    lines = [
        "| n, noise | images | reference's tail | black box to it | by gradients to it | worst |"
        " black box ends | gradients end |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for group in dict.fromkeys(key.rsplit(" ", 1)[0] for key in results):
        rows = [row for key, row in results.items() if key.rsplit(" ", 1)[0] == group]
        theirs, ours = (
            [share[0] or 1.0 for share in (row[name] for row in rows)]
            for name in ("black_box_fraction", "fraction")
        )
        mean = {k: np.mean([r[k] for r in rows]) for k in ("target", "black_box_final", "final")}
        lines.append(
            f"| {group} | {rows[0]['images'][-1]} | {mean['target']:.2f} | {_geometric(theirs)} |"
            f" {_geometric(ours)} | {max(ours):.3f} | {mean['black_box_final']:.2f} |"
            f" {mean['final']:.2f} |"
        )
    return "\n".join(lines)


def _geometric(values: Sequence[float]) -> str:
    return f"{float(np.exp(np.mean(np.log(values)))):.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dimensions", type=int, nargs="+", default=list(synthetic.DIMENSIONS))
    parser.add_argument("--show", action="store_true")
    arguments = parser.parse_args()
    shown = json.loads(RESULTS.read_text()) if arguments.show else measure(arguments.dimensions)
    print(table(shown))


if __name__ == "__main__":
    main()
