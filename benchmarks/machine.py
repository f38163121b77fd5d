"""What the figures were measured on, how they are timed, and where they are kept."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import json
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        bench: short name, such as ``"B1"``.
        metric: what was measured.
        value: the figure, as people read it.
        expected: what it should be, or nothing.
    """

    bench: str
    metric: str
    value: str
    expected: str = ""


@dataclass(frozen=True)
class Spread:
    """The middle of repeated measurements, and their range."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle value."""
        return statistics.median(self.values)

    def text(self, digits: int = 2) -> str:
        """Show ``median (lowest to highest)``."""
        low, high = min(self.values), max(self.values)
        return f"{self.median:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def describe() -> dict[str, str]:
    """Describe this machine: no names of hosts or people, no paths."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{name: _version(name) for name in ("diffusers", "transformers")},
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def save(name: str, figures: dict[str, Any], folder: Path = RESULTS) -> Path:
    """Keep figures as ``<name>.json`` beside a description of the machine."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    text = json.dumps({"machine": describe(), **figures}, indent=1, allow_nan=False)
    partial = path.with_suffix(".partial")
    partial.write_text(text + "\n")
    partial.replace(path)
    return path


def load(name: str, folder: Path = RESULTS) -> dict[str, Any] | None:
    """Read figures that were kept, or None when there are none."""
    path = folder / f"{name}.json"
    if not path.exists():
        return None
    figures: dict[str, Any] = json.loads(path.read_text())
    return figures


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch use a number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def seconds(work: Callable[[], object]) -> float:
    """Time one call by the clock."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def alternating(
    first: Callable[[int], object], second: Callable[[int], object], repeats: int
) -> tuple[list[float], list[float]]:
    """Time two pieces of work in turn, so that what else the machine does falls on both alike.

    Args:
        first: called with the number of the repeat.
        second: likewise; the order of the two changes with every repeat.
        repeats: how often each is called.
    """
    times: tuple[list[float], list[float]] = ([], [])
    for repeat in range(repeats):
        for which in (0, 1) if repeat % 2 == 0 else (1, 0):
            work = (first, second)[which]
            started = time.perf_counter()
            work(repeat)
            times[which].append(time.perf_counter() - started)
    return times


def quiet() -> None:
    """Keep warnings and loading bars of diffusers and transformers out of the tables."""
    for name in ("diffusers", "transformers"):
        with contextlib.suppress(ImportError):
            logging = importlib.import_module(f"{name}.utils.logging")
            logging.set_verbosity_error()
            logging.disable_progress_bar()
    warnings.simplefilter("ignore")
