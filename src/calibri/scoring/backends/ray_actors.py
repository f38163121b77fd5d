"""What runs in the processes of a Ray cluster; the driver's side is ``ray_cluster``.

These classes are imported there by name, so nothing of them travels. What travels is plain values,
and what is raised here reaches the driver as Ray's own exception around it.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from typing import Any

import torch

from calibri.config import RunConfig
from calibri.scoring.backends.local import Local
from calibri.scoring.backends.worker import loaded, result_of
from calibri.scoring.bench import Bench
from calibri.scoring.units import Backend, Result
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

    def load(self, config: Mapping[str, Any], threads: int) -> None:
        """Load pipeline and rewards.

        Args:
            config: of the run, with the device that this actor has.
            threads: of torch.

        Raises:
            CalibriError: one of them cannot be had on this node, or does not fit.
        """
        torch.set_num_threads(threads)
        self._backend: Backend = loaded(config, _local)

    def compute(self, unit: Mapping[str, Any]) -> Result:
        """Compute a unit, see ``Unit.to_json``.

        Raises:
            CalibriError: what it raises.
        """
        return result_of(self._backend, unit)


def _local(config: RunConfig) -> Backend:
    return Local(Bench(config))


def comparable_versions() -> dict[str, str]:
    """Versions that driver and workers must share; builds for a CPU and for CUDA are alike."""
    versions = {"python": platform.python_version()} | versions_here()
    return {name: version.split("+")[0] for name, version in versions.items()}
