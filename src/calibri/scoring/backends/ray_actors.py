"""What runs in the processes of a Ray cluster; the driver's side is ``ray_workers``.

These classes are imported there by name, so nothing of them travels. What travels is plain values
and, from those that sample to those that hold the rewards, arrays of pixels in Ray's object store.
What is raised here reaches the driver as Ray's own exception around it.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from calibri.arrays import Pixels
from calibri.config import RunConfig
from calibri.errors import ConfigError
from calibri.scoring.backends.local import Local
from calibri.scoring.backends.retry import Values
from calibri.scoring.backends.worker import loaded, result_of
from calibri.scoring.bench import Bench
from calibri.scoring.measures import Measures
from calibri.scoring.measuring import measure_rows
from calibri.scoring.pictures import Pictures
from calibri.scoring.units import Result, Unit
from calibri.version import versions_here


class Actor:
    """What all actors tell of themselves."""

    def ping(self) -> None:
        """Show that it is alive."""

    def versions(self) -> dict[str, str]:
        """Versions of what computes scores in this process."""
        return comparable_versions()


class UnitActor(Actor):
    """Computes units on a bench of its own."""

    def load(self, config: Mapping[str, Any], threads: int, with_rewards: bool) -> None:
        """Load the pipeline, and the rewards unless others hold them.

        Args:
            config: of the run, with the device that this actor has.
            threads: of torch.
            with_rewards: whether it measures too.

        Raises:
            CalibriError: one of them cannot be had on this node, or does not fit.
        """
        torch.set_num_threads(threads)

        def bench(config: RunConfig) -> Bench:
            return Bench(config, None if with_rewards else Measures({}))

        self._bench = loaded(config, bench)
        self._local = Local(self._bench)

    def compute(self, unit: Mapping[str, Any]) -> Result:
        """Compute a unit, see ``Unit.to_json``.

        Raises:
            CalibriError: what it raises.
        """
        return result_of(self._local, unit)

    def sample(self, unit: Mapping[str, Any]) -> tuple[dict[str, Any], Pixels]:
        """Sample the rows of a unit for others to measure.

        Returns:
            Which images are broken, and the smaller batch that has fitted where one had to; and the
            images, uint8 as in ``Pictures``.
        """
        read = Unit.from_json(unit)
        pictures = self._bench.sample(read, read.rows).cpu()
        about = {"broken": pictures.broken.tolist(), "smaller": self._local.smaller_batch("scores")}
        return about, pictures.pixels.numpy()


class RewardActor(Actor):
    """Holds the rewards alone."""

    def load(self, config: Mapping[str, Any], threads: int) -> None:
        """Make the rewards; their weights are loaded when they first score.

        Raises:
            CalibriError: one of them cannot be had on this node, or does not fit.
        """
        torch.set_num_threads(threads)
        self._measures = loaded(config, Measures.of)

    def measure(self, unit: Mapping[str, Any], broken: Sequence[bool], pixels: Pixels) -> Values:
        """Measure the images of all rows of a unit.

        Raises:
            RewardError: a reward failed.
        """
        read = Unit.from_json(unit)
        # What the object store holds cannot be written to.
        pictures = Pictures(torch.from_numpy(pixels.copy()), torch.tensor(list(broken)))
        values = measure_rows(self._measures, read, read.rows, pictures)
        return {name: value.detach().cpu() for name, value in values.items()}


def comparable_versions() -> dict[str, str]:
    """Versions that driver and workers must share; builds for a CPU and for CUDA are alike."""
    versions = {"python": platform.python_version()} | versions_here()
    return {name: version.split("+")[0] for name, version in versions.items()}


def check_versions(there: Mapping[str, str], name: str) -> None:
    """Refuse a node whose software is not that of the driver: scores would not be comparable.

    Args:
        there: versions on the node.
        name: of the node.

    Raises:
        ConfigError: names both.
    """
    here = comparable_versions()
    differing = [
        f"{library} {here.get(library, 'none')} here and {there.get(library, 'none')} there"
        for library in sorted({*here, *there})
        if here.get(library) != there.get(library)
    ]
    if differing:
        raise ConfigError(
            f"Driver and node {name} have different versions: {', '.join(differing)}. Install the "
            "same on both."
        )
