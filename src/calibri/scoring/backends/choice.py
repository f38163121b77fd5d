"""Which back-end computes the units of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from calibri.config import RunConfig
from calibri.devices import resolve_device
from calibri.errors import ConfigError
from calibri.pipelines import Pipeline
from calibri.scoring.backends.local import Local
from calibri.scoring.backends.pace import Pace
from calibri.scoring.backends.processes import Worker, cores, default_workers, worker_devices
from calibri.scoring.backends.ray_cluster import RayCluster
from calibri.scoring.backends.ray_connection import check_connection
from calibri.scoring.backends.workers import Workers
from calibri.scoring.bench import Bench
from calibri.scoring.units import Backend


@dataclass(frozen=True)
class Pool:
    """Processes that compute units, this one the first.

    Attributes:
        devices: one for each process.
        threads: of each process; None for as many as this one has, when it stays alone.
    """

    devices: tuple[str, ...]
    threads: int | None


def choose_pool(device: str, model_bytes: int, images: int, asked: int | None) -> Pool:
    """Choose how many processes compute units, and with how many threads.

    The threads depend on what pays off and never on how many workers were asked for: scores can
    depend on them in their last bits.

    Args:
        device: of this process.
        model_bytes: size of everything that a worker loads.
        images: images that will be sampled.
        asked: workers that are wanted; None for as many as pay off.

    Raises:
        ConfigError: there are fewer GPUs than workers.
    """
    best = default_workers(device, model_bytes, images)
    count = asked or best
    if best > 1:
        threads: int | None = max(1, cores() // best)
    else:
        threads = torch.get_num_threads() if count > 1 else None
    return Pool(tuple(worker_devices(device, count)), threads)


def check_workers(config: RunConfig) -> None:
    """Refuse workers that cannot be had.

    Raises:
        ConfigError: there are fewer GPUs than workers, the device does not exist, Ray is not
            installed or its cluster not there.
    """
    if config.sampling.workers == "ray":
        _check_rewards_apart(config)
        check_connection()
    else:
        worker_devices(str(resolve_device(config.device)), config.sampling.workers or 1)


def _check_rewards_apart(config: RunConfig) -> None:
    if config.sampling.ray.reward_workers and config.search.method_info.uses_gradients:
        raise ConfigError(
            f"sampling.ray.reward_workers is {config.sampling.ray.reward_workers}, but a gradient "
            "needs pipeline and rewards in one process. Set it to 0."
        )


def driver_device(config: RunConfig) -> str:
    """Say where this process has its pipeline: one that only directs others needs no GPU."""
    return "cpu" if config.sampling.workers == "ray" else config.device


def make_backend(
    bench: Bench,
    config: RunConfig,
    images: int,
    on_message: Callable[[str], None] = lambda text: None,
    on_page: Callable[[str], None] = lambda url: None,
) -> Backend:
    """Compute units on a bench, and in as many other processes as are configured or pay off.

    Args:
        bench: of this process; one with objects that no configuration names stays alone.
        config: what the other processes make their benches of.
        images: about as many will be sampled.
        on_message: told what a person should know of the workers.
        on_page: told the address of a page on which a cluster shows them.

    Raises:
        ConfigError: there are fewer GPUs than workers, or no Ray cluster with room for one.
    """
    workers = config.sampling.workers
    if workers == "ray":
        pool = choose_pool("cpu", _pipeline_bytes(bench.pipe), images, None)
        threads = pool.threads or torch.get_num_threads()
        return RayCluster(config, threads, on_message, on_page)
    asked = workers if bench.is_configured else 1
    pool = choose_pool(str(bench.device), _pipeline_bytes(bench.pipe), images, asked)
    if pool.threads is None:
        return Local(bench)
    pace = Pace()
    here, *names = worker_names(pool.devices)
    others = [
        Worker(config, device, pool.threads, pace, name)
        for device, name in zip(pool.devices[1:], names, strict=True)
    ]
    return Workers(Local(bench), others, pool.threads, on_message, here if others else "")


def worker_names(devices: Sequence[str]) -> list[str]:
    """Name workers by their devices, with a number where several share one."""
    shared = len(set(devices)) < len(devices)
    return [f"{d} {i}" if shared else d for i, d in enumerate(devices, start=1)]


def _pipeline_bytes(pipe: Pipeline) -> int:
    """Add up the sizes of all weights of a pipeline."""
    modules = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
    return sum(p.numel() * p.element_size() for part in modules for p in part.parameters())
