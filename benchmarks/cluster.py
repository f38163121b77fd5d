"""What Ray costs: units a second that one driver can feed, and its CPU, latency and bytes a unit.

Actors answer at once, so that all that is timed is the way to them and back; the scheduler, the
calls and the units are those of a run. Actors share this machine's cores with the driver, which a
cluster's do not. What hundreds of workers ask of the scheduler is measured with threads that rest
in place of actors.

    python -m benchmarks.cluster --workers 2 8
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Mapping, Sequence
from typing import Any
from unittest import mock

import numpy as np

from benchmarks.machine import Row
from calibri.coefficients import SearchSpace
from calibri.config import RunConfig, load_config
from calibri.pipelines import build_networks, find_geometry
from calibri.planning import searched, with_defaults
from calibri.prompts import Prompt, PromptSets, make_prompts
from calibri.results import Fidelity
from calibri.runs import Session
from calibri.sampling import Noise
from calibri.scoring.backends import ray_cluster, ray_connection, ray_workers
from calibri.scoring.backends.ray_actors import Actor
from calibri.scoring.backends.workers import Workers
from calibri.scoring.units import Result, Unit, make_unit

FLUX = "flux.1-dev"
_PROMPT = "A photo of a red fox that reads a newspaper in the window of a night train, film grain"


class InstantActor(Actor):
    """Answers without computing: one number for each row."""

    def load(self, config: Mapping[str, Any], threads: int, with_rewards: bool) -> None:
        """Load nothing."""

    def compute(self, unit: Mapping[str, Any]) -> Result:
        return result_of(unit["measures"], len(unit["rows"]))


def result_of(measures: Sequence[str], rows: int) -> Result:
    """Scores with as many digits as real ones."""
    return {"scores": {name: [0.1234567890123456] * rows for name in measures}}


class Resting:
    """A worker as the scheduler sees one that is far away: it takes its time and no CPU."""

    def __init__(self, seconds: float, name: str) -> None:
        self.seconds, self.name = seconds, name

    def open(self) -> None:
        """Be there."""

    def compute(self, unit: Unit) -> Result:
        time.sleep(self.seconds)
        return result_of(unit.measures, len(unit.rows))

    def stop(self) -> None:
        """Go."""


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


def flux_unit() -> Unit:
    """One image of FLUX.1-dev, searched by gates."""
    geometry = find_geometry(FLUX, None)
    given = {"pipeline": FLUX, "space.granularity": "gate", "rewards.objective": "hpsv3"}
    config = with_defaults(load_config(values=given), geometry)
    space: SearchSpace = searched(build_networks(geometry), config)
    vector = space.start + 0.1 * np.random.default_rng(0).normal(size=space.size)
    noise = Noise(Prompt("0" * 16, _PROMPT, {}), 2**62 + 1)
    return make_unit([space.coefficients(vector)], [(0, noise)], ("hpsv3",), Fidelity())


def sizes(unit: Unit) -> tuple[int, int]:
    """Bytes of a unit on its way to an actor, and of its result on the way back."""
    pickle = ray_connection.import_ray().cloudpickle
    result = result_of(unit.measures, len(unit.rows))
    return len(pickle.dumps(unit.to_json())), len(pickle.dumps(result))


def scheduled(workers: int, seconds: float, work: list[Unit]) -> dict[str, float]:
    """Have the scheduler serve so many workers that need so long for a unit."""
    team = [Resting(seconds, f"worker {number}") for number in range(workers)]
    pool = Workers(None, team, 1)
    try:
        cpu, started = time.process_time(), time.perf_counter()
        assert len(dict(pool.run(enumerate(work)))) == len(work)
        taken = time.perf_counter() - started
        cpu = time.process_time() - cpu
    finally:
        pool.close()
    ideal = seconds * -(-len(work) // workers)
    return {"busy": ideal / taken, "cpu": 1000 * cpu / len(work)}


def rows(counts: list[int], number: int) -> list[Row]:
    work = units(number)
    found = []
    for words, unit in (("32 images, shipped pipeline", work[0]), ("an image, FLUX", flux_unit())):
        task, result = sizes(unit)
        found.append(Row("R1", f"bytes of a unit, {words}: task, result", f"{task:,}, {result:,}"))
    ray = ray_connection.import_ray()
    for count in counts:
        ray.init(address="local", num_cpus=count, include_dashboard=False, log_to_driver=False)
        try:
            timed = measured(count, work)
        finally:
            ray.shutdown()
        found += [
            Row("R2", f"units a second, {count} instant actors", f"{timed['rate']:.0f}"),
            Row("R3", f"driver CPU a unit, {count} actors, ms", f"{timed['cpu']:.2f}"),
            Row("R4", f"way of a unit and back, {count} actors, ms", f"{timed['latency']:.2f}"),
        ]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    found.append(Row("R5", "memory of the driver at most, MB", f"{peak:.0f}"))
    for count in (64, 512):
        served = scheduled(count, 1.0, units(4 * count))
        found += [
            Row(
                "R6",
                f"share of {count} workers kept busy, 4 rounds of 1 s",
                f"{served['busy']:.2f}",
            ),
            Row("R7", f"CPU of the scheduler a unit, {count} workers, ms", f"{served['cpu']:.2f}"),
        ]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--units", type=int, default=2000)
    arguments = parser.parse_args()
    for row in rows(arguments.workers, arguments.units):
        print(row.bench, row.metric, row.value, sep=" | ")


if __name__ == "__main__":
    main()
