"""Kill runs at random moments and fill their disk, and see that nothing is lost.

    python -m benchmarks.faults kills --trials 20
    python -m benchmarks.faults moves --trials 10    # kills, and goes on with other kernels
    python -m benchmarks.faults disk --trials 10     # mounts a small tmpfs: needs root

Each trial starts `calibri calibrate`, disturbs it and resumes it, with other numbers of workers,
until it ends. The calibration must be that of a run that nobody disturbed, byte for byte; where
the kernels of OpenBLAS change on the way, as they do on another processor, the search goes on in
other last bits, but no unit may be computed twice. Nothing temporary may stay behind.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from calibri.runs.journal import read_journal

SETTINGS = {
    "sampling.num_inference_steps": 2,
    "sampling.batch_size": 16,
    "search.popsize": 8,
    "search.generations": 6,
    "search.bucket_size": 8,
    "search.validate_every": 2,
    "search.num_validation_prompts": 16,
    "evaluation.num_prompts": 16,
    "evaluation.images_per_prompt": 1,
    "evaluation.step_multiples": "[1]",
    "evaluation.num_samples": 2,
}
KERNELS = ["Haswell", "Nehalem", "Sandybridge", "Prescott"]
LIMIT_S = 300.0


def main() -> int:
    """Run the trials, and return how many lost something."""
    arguments = _arguments()
    rng = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole, seconds = _undisturbed(folder)
        trial = {"kills": kill_trial, "moves": move_trial, "disk": disk_trial}[arguments.what]
        found: Counter[str] = Counter()
        for number in range(arguments.trials):
            said = trial(folder / f"{number}", whole, seconds, rng)
            found[said] += 1
            print(f"{number + 1}/{arguments.trials} {said}", flush=True)
    print("; ".join(f"{count} {said}" for said, count in found.most_common()), flush=True)
    return sum(count for said, count in found.items() if not said.startswith("kept"))


def kill_trial(folder: Path, whole: bytes, seconds: float, rng: random.Random) -> str:
    """Kill a run two or three times, wherever it is."""
    return _kill(folder, seconds, rng, ()) or _finish(folder, whole, rng)


def move_trial(folder: Path, whole: bytes, seconds: float, rng: random.Random) -> str:
    """The same from one kind of processor to another."""
    return _kill(folder, seconds, rng, KERNELS) or _finish(folder, None, rng)


def _kill(folder: Path, seconds: float, rng: random.Random, kernels: Sequence[str]) -> str:
    folder.mkdir()
    for _ in range(rng.choice([2, 3])):
        process = _start(folder, rng, kernels)
        try:
            process.wait(rng.uniform(0.2, 1.0) * seconds)
        except subprocess.TimeoutExpired:
            process.kill()
        said = process.communicate()[0]
        if process.returncode not in (0, -signal.SIGKILL):
            return f"LOST: exit code {process.returncode}: {said[-500:]}"
    return ""


def disk_trial(folder: Path, whole: bytes, seconds: float, rng: random.Random) -> str:
    """Run out of room somewhere, make room, and go on."""
    folder.mkdir()
    size = int(rng.uniform(1, 160))
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size * 4096}", "none", folder], check=True
    )
    try:
        process = _start(folder, rng)
        said = process.communicate(timeout=LIMIT_S)[0]
        if process.returncode == 0:
            return _compared(folder, whole)
        if "Traceback" in said or process.returncode < 0:
            return f"LOST: {said[-500:]}"
        subprocess.run(["mount", "-o", "remount,size=64m", folder], check=True)
        return _finish(folder, whole, rng)
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def _undisturbed(folder: Path) -> tuple[bytes, float]:
    (folder / "whole").mkdir()
    started = time.monotonic()
    process = _start(folder / "whole", random.Random(0))
    said = process.communicate(timeout=LIMIT_S)[0]
    if process.returncode:
        raise SystemExit(said)
    return _bytes(folder / "whole"), time.monotonic() - started


def _start(folder: Path, rng: random.Random, kernels: Sequence[str] = ()) -> subprocess.Popen[str]:
    """Start a run in a folder, or go on with the one that is there."""
    workers = rng.choice("12")
    run = folder / "runs" / "run"
    calibri = str(Path(sys.executable).with_name("calibri"))
    if (run / "config.json").exists():
        command = [calibri, "resume", str(run), "--workers", workers]
    else:
        options = [f"--set={name}={value}" for name, value in SETTINGS.items()]
        command = [calibri, "calibrate", "--name", "run", "--workers", workers, *options]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    if kernels:
        env |= {"OPENBLAS_CORETYPE": rng.choice(kernels)}
    return subprocess.Popen(
        command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def _finish(folder: Path, whole: bytes | None, rng: random.Random) -> str:
    process = _start(folder, rng)
    said = process.communicate(timeout=LIMIT_S)[0]
    if process.returncode:
        return f"LOST: it does not go on: {said[-500:]}"
    return _compared(folder, whole)


def _compared(folder: Path, whole: bytes | None) -> str:
    if whole not in (None, _bytes(folder)):
        return "LOST: other coefficients"
    records = read_journal(folder / "runs" / "run" / "journal.jsonl")
    units = Counter(_place(record) for record in records if record["kind"] == "unit")
    if twice := sum(count > 1 for count in units.values()):
        return f"LOST: {twice} of {len(units)} units were computed twice"
    left = [path.name for path in folder.rglob("*") if ".tmp" in path.name]
    return f"LOST: {left} stay behind" if left else "kept everything"


def _place(record: Mapping[str, Any]) -> tuple[Any, ...]:
    return record["phase"], record["step"], record["unit"]


def _bytes(folder: Path) -> bytes:
    (found,) = folder.glob("runs/run/calibration/*.safetensors")
    return found.read_bytes()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=["kills", "moves", "disk"])
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
