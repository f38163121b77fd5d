"""A reward that can be gamed, with and without held-out rewards that guard the search.

The objective is the mean saturation of the pixels, which no one should maximise: it rises best when
pictures go wrong. The held-out rewards are the judge and the programmatic score of the shipped
world. Run it with ``python -m benchmarks.gaming``; each of its three runs takes some minutes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from calibri import calibrate
from calibri.config import Guard, RunConfig, load_config
from calibri.results import Figure, RunSummary
from calibri.rewards import BatchedReward, RewardInfo

GUARDS: tuple[Guard, ...] = ("off", "veto", "stop")
HELD_OUT = ("shapes-judge", "shapes")


class Saturation(BatchedReward):
    """Mean saturation, in [0, 1]; ignores the prompt."""

    info = RewardInfo(
        name="saturation",
        variant="mean of (max - min) / max over pixels",
        range=(0.0, 1.0),
        unit="0 is grey",
    )

    def score_batch(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        pixels = images.float()
        high, low = pixels.amax(1), pixels.amin(1)
        return ((high - low) / high.clamp(min=1.0)).mean((1, 2))


def install(folder: Path) -> None:
    """Add the reward as another package would: by an entry point."""
    info = folder / "saturation-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: saturation\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[calibri.rewards]\nsaturation = benchmarks.gaming:Saturation\n"
    )
    sys.path.insert(0, str(folder))


def config(guard: Guard, generations: int, seed: int) -> RunConfig:
    return load_config(
        values={
            "seed": seed,
            "rewards.objective": "saturation",
            "rewards.held_out": HELD_OUT,
            "rewards.guard": guard,
            "search.generations": generations,
            "search.popsize": 12,
            "search.bucket_size": 12,
            "search.validate_every": 3,
            "search.num_validation_prompts": 64,
            "evaluation.num_prompts": 96,
            "evaluation.images_per_prompt": 1,
            "evaluation.step_multiples": (1,),
            "evaluation.num_samples": 0,
        }
    )


def shown(figure: Figure) -> str:
    return f"{figure.mean:+.4f} [{figure.low:+.4f}, {figure.high:+.4f}]"


def report(guard: Guard, summary: RunSummary, seconds: float) -> None:
    print(f"\nguard {guard}: {seconds:.0f} s, {summary.search.stopped}")
    for checkpoint in summary.search.checkpoints:
        held_out = ", ".join(f"{n} {shown(f)}" for n, f in checkpoint.held_out.items())
        mark = "chosen" if checkpoint.chosen else ""
        mark = f"vetoed by {', '.join(checkpoint.vetoed_by)}" if checkpoint.vetoed_by else mark
        print(
            f"  generation {checkpoint.generation + 1}: saturation {shown(checkpoint.difference)}"
            f"{', ' if held_out else ''}{held_out}  {mark}"
        )
    assert summary.evaluation is not None
    kept = summary.coefficients == summary.start
    print("  returned:", "the original model" if kept else "a calibration")
    for comparison in summary.evaluation.comparisons:
        print(f"  final, {comparison.reward}: {shown(comparison.difference)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--generations", type=int, default=9)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        install(Path(folder))
        for guard in GUARDS:
            started = time.perf_counter()
            settings = config(guard, options.generations, options.seed)
            summary = calibrate(settings, name=guard, runs=Path(folder))
            report(guard, summary, time.perf_counter() - started)


if __name__ == "__main__":
    main()
