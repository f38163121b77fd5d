"""How much of the gain comes from the sites, and how much from the output weight alone.

Three searches of the same budget would not do for the output weight, which is one number: it is
swept on the validation prompts instead. All three are scored on the test prompts of a run.

    python -m benchmarks.output_weight [--seed 0] [--runs FOLDER]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

from calibri import calibrate
from calibri.artifact import Calibration
from calibri.coefficients import Coefficients
from calibri.config import load_config
from calibri.progress import Progress
from calibri.results import Comparison
from calibri.runs import Session
from calibri.runs.comparison import Comparer
from calibri.scoring import Ledger, MemoryRecords

SWEEP = np.arange(0.80, 1.61, 0.05)


def searched(session: Session, runs: Path, name: str, **values: object) -> Coefficients:
    """Search as a run does and return what it found."""
    config = session.config.model_copy(
        update={"space": session.config.space.model_copy(update=values)}
    )
    calibrate(config, name=name, runs=runs)
    return Calibration.from_pretrained(runs / name / "calibration").coefficients


def swept(session: Session) -> Coefficients:
    """Choose the output weight alone, on the validation prompts."""
    start = session.space.coefficients(session.space.start)
    candidates = [
        start.model_copy(update={"output_weights": tuple(w * f for w in start.output_weights)})
        for f in SWEEP
    ]
    noises = session.noises("validation", 0, session.prompts.validation)
    evaluator = session.evaluator(Ledger(MemoryRecords()))
    scores = evaluator.score("sweep", 0, candidates, noises, session.objective)
    means = scores[session.config.rewards.objective].mean(axis=1)
    best = int(np.argmax(means))
    print(f"output weight alone: best factor {SWEEP[best]:.2f} on validation")
    return candidates[best]


def differences(session: Session, coefficients: Coefficients) -> list[Comparison]:
    """Compare with the original at the same steps, on the test prompts."""
    evaluator = session.evaluator(Ledger(MemoryRecords()))
    comparer = Comparer(session, evaluator, session.prompts.test)
    steps = session.config.sampling.num_inference_steps
    return [
        c
        for c in comparer.run(coefficients, Progress()).comparisons
        if c.num_inference_steps == steps
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, default=None)
    parser.add_argument("--guidance-scale", type=float, default=None)
    arguments = parser.parse_args()
    runs = arguments.runs or Path(tempfile.mkdtemp())
    session = Session(
        load_config(
            values={
                "seed": arguments.seed,
                "sampling.guidance_scale": arguments.guidance_scale,
                "evaluation.step_multiples": (1,),
            }
        )
    )
    found = {
        "sites and output": searched(session, runs, "both"),
        "sites alone": searched(session, runs, "sites", output_weights=False, output_knots=1),
        "output weight alone": swept(session),
    }
    print(f"seed {arguments.seed}, {len(session.prompts.test)} held-out prompts, 95% intervals")
    for label, coefficients in found.items():
        parts = [
            f"{c.reward} {c.difference.mean:+.3f} "
            f"[{c.difference.low:+.3f}, {c.difference.high:+.3f}]"
            for c in differences(session, coefficients)
        ]
        print(f"{label:22s} {'   '.join(parts)}")


if __name__ == "__main__":
    main()
