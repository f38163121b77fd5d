"""The search by gradients beside the black-box search at equal cost, shipped pipeline.

A search by gradients costs at most what the black box does in as many generations: an image with
its gradient is counted as three images. What it takes in processor time, which other work on the
machine does not change, is measured too. Each has the product's settings. What they return, the
average of their last quarter, is scored on prompts and noise that no search saw, whether or not the
validation would choose it.

    python -m benchmarks.gradient [--guidance 1 3] [--seeds 0 1 2] [--generations 4]

Every search is kept when it is done; running again computes the missing ones.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks import machine
from calibri.config import load_config
from calibri.progress import Progress
from calibri.results import Figure
from calibri.runs import Session
from calibri.runs.gradients import Gradients
from calibri.runs.loop import ValidatedSearch
from calibri.scoring import Ledger, MemoryRecords
from calibri.statistics import bootstrap_mean, paired_difference

METHODS = {"black box": "calibri", "gradient": "gradient"}
REWARDS = ("shapes", "shapes-judge")
Gains = dict[str, NDArray[np.float64]]


def make_session(method: str, guidance: float, seed: int, generations: int) -> Session:
    return Session(
        load_config(
            values={
                "device": "cpu",
                "seed": seed,
                "sampling.guidance_scale": guidance,
                "sampling.workers": 1,
                # The paper's space: a factor on the shift would have no gradient.
                "space.output_knots": 1,
                "space.shift": False,
                "search.method": METHODS[method],
                "search.generations": generations,
                "search.popsize": 64,
                "search.validate_every": generations,
                "search.num_validation_prompts": 32,
                "evaluation.num_prompts": 128,
                "evaluation.images_per_prompt": 1,
            }
        )
    )


def run(method: str, guidance: float, seed: int, generations: int) -> dict[str, Any]:
    """Search once; scores on held-out prompts of the original and of what was found."""
    session = make_session(method, guidance, seed, generations)
    evaluator = session.evaluator(Ledger(MemoryRecords()))
    started = time.process_time()
    search = ValidatedSearch(session, evaluator, Progress())
    *_, last = search
    returned, result = search.result()
    seconds = time.process_time() - started
    tail = last.vector
    noises = session.noises("held out", 0, session.prompts.test)
    candidates = [session.space.coefficients(vector) for vector in (session.space.start, tail)]
    tables = evaluator.score(
        "held out", 0, candidates, noises, tuple(session.bench.measures.rewards)
    )
    return {
        "images": result.images,
        "processor_seconds": seconds,
        "chosen": bool(np.array_equal(returned, tail)),
        "vector": list(tail),
        "scores": {name: table.tolist() for name, table in tables.items()},
    }


def searches(generations: int) -> dict[str, Any]:
    """Settings of both searches, which kept figures must have."""
    return {
        method: load_config(
            values={"search.method": name, "search.generations": generations}
        ).search.model_dump(mode="json")
        for method, name in METHODS.items()
    }


def cost_of_a_gradient(guidance: float, repeats: int = 3) -> list[float]:
    """Processor time of images with a gradient, in that of the same images without."""
    session = make_session("gradient", guidance, 0, 1)
    evaluator = session.evaluator(Ledger(MemoryRecords()))
    gradients, start = Gradients(session, evaluator), session.space.start
    noises = session.noises("cost", 0, session.prompts.train[:16])
    measures = session.objective
    candidates = [session.space.coefficients(start)]
    ratios = []
    for repeat in range(repeats + 1):
        before = time.process_time()
        evaluator.score("cost", repeat, candidates, noises, measures)
        between = time.process_time()
        gradients("gradient", repeat, start, noises)
        ratios.append((time.process_time() - between) / (between - before))
    return ratios[1:]  # the first one encodes the prompts


def summary(records: Sequence[dict[str, Any]]) -> dict[str, dict[str, Figure]]:
    """Pool seeds: means of the original and of what was found, and their paired difference."""
    lines = {}
    for name in REWARDS:
        original, found = np.concatenate([r["scores"][name] for r in records], axis=1)
        lines[name] = {
            "original": bootstrap_mean(original, seed=0),
            "found": bootstrap_mean(found, seed=0),
            "gain": paired_difference(found, original, seed=0),
        }
    return lines


def advantage(runs: dict[str, list[dict[str, Any]]], name: str) -> Figure:
    """Gradient minus black box on the same prompts and noise."""
    ours, theirs = (
        np.concatenate([np.asarray(record["scores"][name])[1] for record in runs[method]])
        for method in ("gradient", "black box")
    )
    return paired_difference(ours, theirs, seed=0)


def shown(figure: Figure, sign: str = "+") -> str:
    return f"{figure.mean:{sign}.3f} [{figure.low:{sign}.3f}, {figure.high:{sign}.3f}]"


def table(figures: dict[str, Any], guidances: Sequence[float], seeds: Sequence[int]) -> Table:
    """Lay out what is there for all seeds and both methods."""
    laid = Table("guidance", "reward", "original", *METHODS, "gradient - black box")
    for guidance in guidances:
        keys = {m: [f"{m}, guidance {guidance:g}, seed {s}" for s in seeds] for m in METHODS}
        if not all(key in figures["runs"] for found in keys.values() for key in found):
            continue
        runs = {method: [figures["runs"][key] for key in keys[method]] for method in METHODS}
        lines = {method: summary(records) for method, records in runs.items()}
        for name in REWARDS:
            gains = [shown(lines[method][name]["gain"]) for method in METHODS]
            original = shown(lines["gradient"][name]["original"], "")
            laid.add_row(f"{guidance:g}", name, original, *gains, shown(advantage(runs, name)))
    return laid


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 3.0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--generations", type=int, default=4)
    options = parser.parse_args()
    machine.quiet()
    settings = {"generations": options.generations, "searches": searches(options.generations)}
    figures = machine.load("gradient") or {**settings, "runs": {}}
    if any(figures.get(name) != value for name, value in settings.items()):
        parser.error("Kept figures are those of other settings or an earlier search; remove them.")
    with machine.threads(1):
        for guidance in options.guidance:
            if f"cost, guidance {guidance:g}" not in figures:
                figures[f"cost, guidance {guidance:g}"] = cost_of_a_gradient(guidance)
            for seed in options.seeds:
                for method in METHODS:
                    key = f"{method}, guidance {guidance:g}, seed {seed}"
                    if key not in figures["runs"]:
                        found = run(method, guidance, seed, options.generations)
                        figures["runs"][key] = found
                        machine.save("gradient", figures)
                        print(f"{key}: {found['processor_seconds']:.0f} s", flush=True)
    Console(width=150).print(table(figures, options.guidance, options.seeds))


if __name__ == "__main__":
    main()
