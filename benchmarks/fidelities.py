"""How cheaper images of the shipped pipeline rank candidates, and what they cost in seconds.

``python -m benchmarks.fidelities --guidance 3 --sigma0 0.3`` scores the original model and 20
candidates on 32 prompts with 2 seeds at full fidelity and at each cheaper one, refused or not. The
first run of each fidelity is timed, the images of the full one having warmed everything up.
"""

from __future__ import annotations

import argparse
import sys

import torch

from calibri.arrays import Scores
from calibri.config import SearchConfig, load_config
from calibri.results import FULL, Fidelity, FidelityResult, Figure
from calibri.runs import Session
from calibri.runs.probe.measure import Design, Measurement
from calibri.runs.probe.variance import variance_components
from calibri.scoring import Evaluator, Ledger, MemoryRecords


def fidelities(steps: int) -> list[Fidelity]:
    """List what is compared: fewer steps, a cache, and both."""
    fewer = [round(share * steps) for share in (0.75, 0.625, 0.5)]
    return [
        *(Fidelity(num_inference_steps=count) for count in fewer),
        *(Fidelity(cache_interval=interval) for interval in (2, 3)),
        Fidelity(num_inference_steps=fewer[0], cache_interval=2),
    ]


def timed(
    measurement: Measurement, evaluator: Evaluator, fidelity: Fidelity
) -> tuple[Scores, float]:
    """Score the images of one fidelity, and time them."""
    before = evaluator.seconds
    table = measurement.table(fidelity)
    return table, evaluator.seconds - before


def line(found: FidelityResult, seconds: float) -> str:
    """One row of the table in docs/cost.md."""
    cells = [found.label, f"{found.cost:.2f}", f"{seconds:.2f}", interval(found.tau, ".2f")]
    return f"| {' | '.join([*cells, interval(found.bias, '+.3f'), found.refused or 'used'])} |"


def interval(figure: Figure, form: str) -> str:
    """A mean and its interval."""
    return f"{figure.mean:{form}} [{figure.low:{form}}, {figure.high:{form}}]"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--sigma0", type=float, default=SearchConfig().sigma0)
    parser.add_argument("--steps", type=int, default=8)
    options = parser.parse_args()
    torch.set_num_threads(1)
    values = {
        "device": "cpu",
        "sampling.workers": 1,
        "sampling.num_inference_steps": options.steps,
        "sampling.guidance_scale": options.guidance,
        "search.sigma0": options.sigma0,
        # The paper's space, so that guidance changes nothing but the images.
        "space.output_knots": 1,
        "space.shift": False,
    }
    session = Session(load_config(values=values))
    with session.evaluator(Ledger(MemoryRecords())) as evaluator:
        measurement = Measurement(session, evaluator, Design(20, 32, 2))
        measurement.table(Fidelity(num_inference_steps=1))
        full, whole = timed(measurement, evaluator, FULL)
        components = variance_components(full[1:])
        print(f"{1e3 * whole / full.size:.1f} ms an image; {components}", file=sys.stderr)
        print(f"with itself on other noise: {interval(measurement.self_tau(full), '.2f')}")
        for fidelity in fidelities(options.steps):
            before = evaluator.seconds
            found = measurement.fidelity(fidelity, full, components)
            print(line(found, (evaluator.seconds - before) / whole), flush=True)


if __name__ == "__main__":
    main()
