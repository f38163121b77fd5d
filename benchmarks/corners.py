"""Run the tests with the oldest, the pinned and the newest versions of everything.

    python -m benchmarks.corners lowest constraints newest
    python -m benchmarks.corners lowest --shared-torch --tests tests/artifact/test_apply.py

Each corner gets a virtual environment of its own under ``--where``. ``--shared-torch`` takes torch,
which is most of the download, from the Python that runs this.
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
CONSTRAINTS = {
    "lowest": ROOT / "constraints-lowest.txt",
    "constraints": ROOT / "constraints.txt",
    "newest": None,
}
# What the tests need; diffusers asks some pipelines for ftfy without naming it.
TOOLS = ["pytest>=9", "pytest-xdist>=3.6", "hypothesis>=6.150", "cma", "cmaes", "peft", "ftfy"]


def main() -> int:
    """Run the corners that were named, and return how many failed."""
    arguments = _arguments()
    failed = []
    for corner in arguments.corners:
        python = _environment(corner, arguments.where, arguments.shared_torch)
        _say_versions(corner, python)
        tests = ["-q", "-m", "not slow and not end_to_end", *arguments.tests]
        if subprocess.run([python, "-m", "pytest", *tests], cwd=ROOT).returncode:
            failed.append(corner)
    print(f"corners failed: {', '.join(failed) or 'none'}", flush=True)
    return len(failed)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("corners", nargs="+", choices=sorted(CONSTRAINTS))
    parser.add_argument("--where", type=Path, default=ROOT / "build" / "corners")
    parser.add_argument("--shared-torch", action="store_true")
    parser.add_argument("--tests", nargs="+", default=[])
    return parser.parse_args()


def _environment(corner: str, where: Path, shared_torch: bool) -> Path:
    folder = where / corner
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
    found = CONSTRAINTS[corner]
    lines = found.read_text().splitlines() if found else []
    if shared_torch:
        lines = [line for line in lines if not line.startswith("torch==")]
        _share_torch(folder)
    constraints = folder / "constraints.txt"
    constraints.write_text("\n".join(lines) + "\n")
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*install, "-c", constraints, "-e", ROOT, *TOOLS], check=True)
    return python


def _share_torch(folder: Path) -> None:
    """Let an environment see the packages of this one behind its own, so that pip keeps torch."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        raise SystemExit("--shared-torch needs a Python that has torch. Leave it out to download.")
    here = Path(spec.origin).parents[1]
    site = next((folder / "lib").glob("python*/site-packages"))
    for part in here.glob("torch*"):
        if part.name in ("torch", "torchgen") or part.suffix == ".dist-info":
            link = site / part.name
            link.unlink(missing_ok=True)
            link.symlink_to(part)


def _say_versions(corner: str, python: Path) -> None:
    names = ("torch", "diffusers", "transformers", "huggingface_hub", "numpy", "pillow")
    code = (
        f"from importlib.metadata import version; "
        f"print(*[f'{{n}} {{version(n)}}' for n in {names!r}], sep=', ')"
    )
    print(f"== {corner}", flush=True)
    subprocess.run([python, "-c", code], check=True)


if __name__ == "__main__":
    sys.exit(main())
