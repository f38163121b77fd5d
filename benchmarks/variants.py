"""Variants of the search at equal cost: where it starts, and at what fidelity it samples.

Each variant gets the transformer evaluations that the default search of the shipped pipeline has,
without checkpoints. Those of what it starts with are counted: a search by block or by layer takes a
third of them. Another calibration is taken as given. What is compared is the average of the last
quarter of the means, on held-out prompts at full fidelity, half-way and at the end.

    python -m benchmarks.variants [--seeds 0 1 2] [--guidance 1]

Every search is kept when it is done; running again computes the missing ones.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks import machine
from calibri.artifact import Calibration, Sampling
from calibri.coefficients import Coefficients, SearchSpace
from calibri.config import RunConfig, load_config
from calibri.planning import images_by_phase
from calibri.progress import Progress
from calibri.results import Fidelity, Figure
from calibri.runs import Session
from calibri.runs.basis import search_basis
from calibri.runs.loop import SearchLoop
from calibri.scoring import Ledger, MemoryRecords
from calibri.statistics import paired_difference

NAME = "variants"
REWARDS = ("shapes", "shapes-judge")
# Of the images, for the coarse search.
_SHARE = 1 / 3
Values = dict[str, Any]
Found = list[Coefficients]
Basis = Callable[[SearchSpace], NDArray[np.float64]]


def config_of(values: Values, images: int | None = None) -> RunConfig:
    """Make a configuration with as many generations as some images pay for."""
    config = load_config(values={"device": "cpu", **values})
    if images is None:
        return config
    size = Session(config).space.size
    best = config
    for count in range(1, 10 * config.search.generations):
        search = config.search.model_copy(update={"generations": count})
        longer = config.model_copy(update={"search": search})
        if images_by_phase(longer, size)["search"] > images:
            break
        best = longer
    return best


def search(config: RunConfig, basis: Basis = search_basis) -> Found:
    """Search without checkpoints, and name what was found half-way and at the end."""
    session = Session(config)
    with session.evaluator(Ledger(MemoryRecords()), images=10**6) as evaluator:
        steps = list(SearchLoop(session, evaluator, Progress(), basis=basis(session.space)))
    chosen = (steps[len(steps) // 2 - 1], steps[-1])
    return [session.space.coefficients(step.vector) for step in chosen]


def smooth_in_depth(space: SearchSpace) -> NDArray[np.float64]:
    """First steps that are smooth in depth: a k-th as long along a wave of k half periods."""
    basis = search_basis(space)
    kinds: dict[str, list[int]] = {}
    for place, label in enumerate(space.labels[: space.num_scales]):
        kinds.setdefault(label.split(".", 2)[-1], []).append(place)
    for places in kinds.values():
        basis[np.ix_(places, places)] = basis[places[0], places[0]] * waves(len(places))
    return basis


def waves(count: int) -> NDArray[np.float64]:
    """Orthonormal cosines over the depth, each divided by its number; as long in all as without."""
    depth, number = np.arange(count) + 0.5, np.arange(count)
    found = np.cos(math.pi / count * depth[:, None] * number)
    found = found / np.linalg.norm(found, axis=0) / (1 + number)
    return np.asarray(found * math.sqrt(count) / np.linalg.norm(found))


def from_calibration(values: Values, first: Values, share: float) -> Found:
    """Search from what another search found; of the images, it took a share."""
    budget = budget_of(values)
    config = config_of({**values, **first}, round((share or 1) * budget))
    found = search(config)[-1]
    with tempfile.TemporaryDirectory() as folder:
        _calibration(config, found).save_pretrained(folder)
        rest = {**values, "space.start": folder}
        return search(config_of(rest, round((1 - share) * budget)))


def _calibration(config: RunConfig, coefficients: Coefficients) -> Calibration:
    sampling = config.sampling
    return Calibration(
        calibri_version="0",
        transformer_class="SD3Transformer2DModel",
        base_model="shapes",
        coefficients=coefficients,
        sampling=Sampling(
            num_inference_steps=sampling.num_inference_steps,
            guidance_scale=sampling.guidance_scale,
            dtype="float32",
        ),
        rewards={"shapes": "shipped"},
        objective="shapes",
        provenance={},
    )


def budget_of(values: Values) -> int:
    """Images of the generations of the default search."""
    config = config_of(values)
    return images_by_phase(config, Session(config).space.size)["search"]


def at_fidelity(values: Values, fidelity: Fidelity) -> Found:
    """Search on cheaper images, and on more of them."""
    chosen = {f"search.fidelity.{name}": v for name, v in fidelity.model_dump().items()}
    steps = config_of(values).sampling.num_inference_steps
    images = budget_of(values) * steps / fidelity.evaluations(steps)
    return search(config_of({**values, **chosen}, round(images)))


def _earlier(values: Values) -> Values:
    """Another run of the same: other draws and prompts, and 12 steps in place of 8."""
    return {"seed": values["seed"] + 1000, "sampling.num_inference_steps": 12}


VARIANTS: dict[str, Callable[[Values], Found]] = {
    "gates at once (the default)": lambda values: search(config_of(values)),
    "blocks, then gates": lambda v: from_calibration(v, {"space.granularity": "block"}, _SHARE),
    "layers, then gates": lambda v: from_calibration(v, {"space.granularity": "layer"}, _SHARE),
    "gates, smooth in depth": lambda values: search(config_of(values), smooth_in_depth),
    "from a calibration at 12 steps": lambda v: from_calibration(v, _earlier(v), 0),
    "images at 6 steps": lambda v: at_fidelity(v, Fidelity(num_inference_steps=6)),
    "images at cache interval 2": lambda v: at_fidelity(v, Fidelity(cache_interval=2)),
}


def scores(variant: str, values: Values) -> dict[str, list[list[float]]]:
    """Search; scores of the original and of both points on held-out prompts."""
    found = VARIANTS[variant](values)
    session = Session(config_of(values))
    candidates = [session.space.coefficients(session.space.start), *found]
    noises = session.noises("held out", 0, session.prompts.test)
    with session.evaluator(Ledger(MemoryRecords()), images=10**6) as evaluator:
        measures = tuple(session.bench.measures.rewards)
        tables = evaluator.score("held out", 0, candidates, noises, measures)
    return {name: tables[name].round(6).tolist() for name in REWARDS}


def difference(runs: Sequence[Values], others: Sequence[Values], name: str, row: int) -> Figure:
    """Difference of two variants on the same prompts and noise, pooled over seeds."""
    ours, theirs = (
        np.concatenate([np.asarray(run[name])[row] for run in part]) for part in (runs, others)
    )
    return paired_difference(ours, theirs, seed=0)


def show(figures: dict[str, Any], keys: dict[str, list[str]]) -> Table:
    """Lay out the gain of the default over the original, and of the others over the default."""
    default, *_ = VARIANTS
    laid = Table("variant", *(f"{name}, {at}" for name in REWARDS for at in ("half-way", "end")))
    base = [figures["runs"][key] for key in keys[default]]
    original = [{n: [table[n][0]] * 3 for n in REWARDS} for table in base]
    for variant, places in keys.items():
        runs = [figures["runs"][key] for key in places]
        against = original if variant == default else base
        cells = [difference(runs, against, n, row) for n in REWARDS for row in (1, 2)]
        laid.add_row(variant, *(f"{c.mean:+.3f} [{c.low:+.3f}, {c.high:+.3f}]" for c in cells))
    return laid


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--guidance", type=float, default=1.0)
    options = parser.parse_args()
    machine.quiet()
    figures = machine.load(NAME) or {"runs": {}}
    keys = {
        variant: [
            f"{variant}, guidance {options.guidance:g}, seed {seed}" for seed in options.seeds
        ]
        for variant in VARIANTS
    }
    for variant, places in keys.items():
        for key, seed in zip(places, options.seeds, strict=True):
            if key not in figures["runs"]:
                values = {"seed": seed, "sampling.guidance_scale": options.guidance}
                figures["runs"][key] = scores(variant, values)
                machine.save(NAME, figures)
                print(key, flush=True)
    Console(width=150).print(show(figures, keys))


if __name__ == "__main__":
    main()
