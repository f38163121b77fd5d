"""What Ray costs: units a second that one driver can feed, and its CPU, latency and bytes a unit.

Actors answer at once, so that all that is timed is the way to them and back; the scheduler, the
calls and the units are those of a run. Actors share this machine's cores with the driver, which a
cluster's do not.

    python -m benchmarks.cluster --workers 2 8
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Mapping
from typing import Any
from unittest import mock

import numpy as np

from benchmarks.machine import Row
from calibri.config import RunConfig, load_config
from calibri.prompts import PromptSets, make_prompts
from calibri.runs import Session
from calibri.scoring.backends import ray_cluster, ray_connection, ray_workers
from calibri.scoring.backends.ray_actors import Actor
from calibri.scoring.units import Result, Unit, make_unit


class InstantActor(Actor):
    """Answers without computing: one number for each row."""

    def load(self, config: Mapping[str, Any], threads: int, with_rewards: bool) -> None:
        """Load nothing."""

    def compute(self, unit: Mapping[str, Any]) -> Result:
        return {"scores": {name: [0.5] * len(unit["rows"]) for name in unit["measures"]}}


def configuration(workers: int) -> RunConfig:
    return load_config(
        values={"device": "cpu", "sampling.workers": "ray", "sampling.ray.workers": workers}
    )


def units(count: int, batch_size: int = 32) -> list[Unit]:
    """Units of the shipped pipeline as a search makes them: a few candidates, 32 rows."""
    session = Session(load_config(values={"device": "cpu"}), PromptSets((), (), ()))
    rng = np.random.default_rng(0)
    start = session.space.start
    candidates = [
        session.space.coefficients(start + 0.1 * rng.normal(size=len(start))) for _ in range(4)
    ]
    prompts = make_prompts([f"picture {i} of something" for i in range(batch_size // 4)])
    made = []
    for step in range(count):
        noises = session.noises("benchmark", step, prompts)
        rows = [(c, noise) for c in range(4) for noise in noises]
        made.append(make_unit(candidates, rows, ("shapes",), session.bench.sampler.full))
    return made


def measured(workers: int, work: list[Unit]) -> dict[str, float]:
    """Feed actors for as long as the units last, after a round that warms up."""
    with mock.patch.object(ray_workers, "UnitActor", InstantActor):
        backend = ray_cluster.RayCluster(configuration(workers), 1, lambda text: None)
        try:
            dict(backend.run(enumerate(work[: 20 * workers])))
            cpu, started = time.process_time(), time.perf_counter()
            results = dict(backend.run(enumerate(work)))
            seconds = time.perf_counter() - started
            cpu = time.process_time() - cpu
            names = {result["worker"] for result in results.values()}
        finally:
            backend.close()
    return {
        "rate": len(work) / seconds,
        "cpu": 1000 * cpu / len(work),
        "latency": 1000 * seconds * len(names) / len(work),
    }


def rows(counts: list[int], number: int) -> list[Row]:
    work = units(number)
    size = np.mean([len(json.dumps(unit.to_json())) for unit in work[:100]])
    found = [Row("R1", "bytes of a unit of 32 images as JSON", f"{size:,.0f}")]
    ray = ray_connection.import_ray()
    for count in counts:
        ray.init(address="local", num_cpus=count, include_dashboard=False, log_to_driver=False)
        figures = measured(count, work)
        ray.shutdown()
        found += [
            Row("R2", f"units a second, {count} instant actors", f"{figures['rate']:.0f}"),
            Row("R3", f"driver CPU a unit, {count} actors, ms", f"{figures['cpu']:.2f}"),
            Row(
                "R4",
                f"way of a unit and back, {count} actors, ms",
                f"{figures['latency']:.2f}",
            ),
        ]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return [*found, Row("R5", "memory of the driver at most, MB", f"{peak:.0f}")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--units", type=int, default=2000)
    arguments = parser.parse_args()
    for row in rows(arguments.workers, arguments.units):
        print(row.bench, row.metric, row.value, sep=" | ")


if __name__ == "__main__":
    main()
