"""Compute units on the nodes of a Ray cluster.

The driver, that is this process, holds the search and the journal; each worker is an actor with a
pipeline and rewards of its own. Ray starts actors, carries units and results, tells when a process
or a node dies and counts resources. What is decided here is how many actors each node gets, and
which nodes get none: those whose software differs, or that lack a model or memory.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from calibri.config import RayConfig, RunConfig
from calibri.errors import CalibriError, ConfigError, NoMemoryError, RunError
from calibri.scoring.backends.board import WorkerLost
from calibri.scoring.backends.nodes import Needs, Node, place
from calibri.scoring.backends.pace import Pace
from calibri.scoring.backends.ray_actors import UnitActor, comparable_versions
from calibri.scoring.backends.ray_calls import Calls
from calibri.scoring.backends.ray_connection import connection
from calibri.scoring.backends.workers import Workers
from calibri.scoring.units import Result, Unit

# Seconds between two looks at the nodes, and without any worker before a run gives up.
_LOOK = 1.0
_WITHOUT = 1800.0
# Deaths of a node's workers while they load, after which it gets no more.
_DEATHS = 3
# Seconds without a word after which a worker is asked whether it lives before it gets a unit.
_IDLE = 1.0


class RayWorker:
    """One actor.

    Args:
        crew: that it belongs to.
        node: where it is to live.
    """

    def __init__(self, crew: RayCluster, node: Node) -> None:
        self._crew = crew
        self.node = node
        self._calls = crew.calls
        self._actor = self._calls.start(UnitActor, crew.needs, node)
        self._was_open = False
        self._has_computed = False
        self._heard = 0.0

    def open(self) -> None:
        """Wait until the node has room, then compare versions and load the models.

        Raises:
            WorkerLost: it cannot be used, or is dead: actors do not come again, others do.
        """
        try:
            if self._was_open:
                raise WorkerLost("it is gone", blameless=True)
            self._was_open = True
            check_versions(self._ask("versions", timeout=None), self.node.name)
            self._ask("load", *self._crew.greeting, timeout=self._crew.pace.first)
        except CalibriError as error:
            self._crew.refuse(self, error)
            raise WorkerLost("its node is left out") from error
        except WorkerLost as lost:
            self._crew.gone(self, lost)
            raise
        self._heard = time.monotonic()
        self._crew.opened(self)

    def compute(self, unit: Unit) -> Result:
        """Send a unit and wait for its result.

        Raises:
            WorkerLost: the actor died or hangs, or its node cannot compute units.
            CalibriError: what the unit raised there.
        """
        self._check_alive()
        started = time.monotonic()
        try:
            result: Result = self._ask("compute", unit.to_json(), timeout=self._crew.pace.patience)
        except CalibriError as error:
            if isinstance(error, NoMemoryError) or not self._has_computed:
                self._crew.refuse(self, error)
                self.stop()
                raise WorkerLost("its node is left out", blameless=True) from error
            raise
        finally:
            self._heard = time.monotonic()
        if self._has_computed:  # the first took the loading of rewards too
            self._crew.pace.add(self._heard - started)
        self._has_computed = True
        return result

    def _check_alive(self) -> None:
        if time.monotonic() - self._heard > _IDLE:
            try:
                self._ask("ping", timeout=self._crew.pace.least)
            except WorkerLost as lost:
                raise WorkerLost(str(lost), blameless=True) from lost

    def _ask(self, method: str, *args: Any, timeout: float | None) -> Any:
        return self._calls.ask(self._actor, method, *args, timeout=timeout, node=self.node)

    def stop(self) -> None:
        """Kill the actor."""
        self._calls.kill(self._actor)


class RayCluster:
    """A back-end whose workers are actors, as many as the cluster has room for at any time.

    Args:
        config: of the run.
        threads: of torch in each worker.
        on_message: told what a person should know.

    Attributes:
        greeting: configuration and threads that actors are told.
        needs: what each asks of its node.
        pace: how long units take.

    Raises:
        ConfigError: there is no Ray, no cluster, or no room in it.
    """

    def __init__(
        self, config: RunConfig, threads: int, on_message: Callable[[str], None] = print
    ) -> None:
        self._options = config.sampling.ray
        self._stack = contextlib.ExitStack()
        ray, pages = self._stack.enter_context(connection())
        self.calls = Calls(ray)
        self.needs = needs_of(config, threads, self.calls.nodes())
        self.greeting = greeting(config, self.needs, threads)
        self.pace = Pace()
        self._lock = threading.Lock()
        self._crew: list[RayWorker] = []
        self._usable: set[RayWorker] = set()
        self._refused: dict[str, CalibriError] = {}
        self._deaths: Counter[str] = Counter()
        self._closed = threading.Event()
        self._workers = Workers(None, [], threads, on_message)
        if pages is not None:
            self._workers.board.say(f"The cluster shows its work at http://{pages}")
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        if self._options.workers is not None:
            self.calls.request(self.needs, self._options.workers)
        elif not self._room(self.calls.nodes()):
            raise ConfigError(
                f"No node of the Ray cluster has room for a worker, which needs {self.needs}: "
                f"{_described(self.calls.nodes())}. Set sampling.ray.gpus_per_worker, or "
                "sampling.ray.workers if the cluster grows when it is asked."
            )
        self._last_seen = time.monotonic()
        self._hire()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def run(self, units: Iterable[tuple[int, Unit]]) -> Iterator[tuple[int, Result]]:
        """Yield the index of a unit and its result as units are finished, in any order."""
        return self._workers.run(units)

    def _watch(self) -> None:
        """Have a worker wherever there is room, until all is over."""
        while not self._closed.wait(_LOOK):
            try:
                self._hire()
                self._check_hope()
            except Exception as error:
                self._workers.board.fail(RunError(f"The Ray cluster cannot be asked: {error!r}."))
                return

    def _hire(self) -> None:
        with self._lock:
            for node in self._room(self.calls.nodes()):
                worker = RayWorker(self, node)
                self._crew.append(worker)
                self._workers.add(worker)

    def _room(self, nodes: Iterable[Node]) -> list[Node]:
        """Where workers can be started, a node once for each."""
        there = Counter(worker.node.id for worker in self._crew)
        usable = [node for node in nodes if node.id not in self._refused]
        most = self._options.workers
        return place(usable, self.needs, there, None if most is None else most - len(self._crew))

    def _check_hope(self) -> None:
        """End a run that nobody works for and for which nobody will."""
        with self._lock:
            alone = not self._crew
            refused = dict(self._refused)
        if not alone:
            self._last_seen = time.monotonic()
        elif refused and self._options.workers is None:
            self._workers.board.fail(list(refused.values())[-1])
        elif time.monotonic() - self._last_seen > _WITHOUT:
            self._workers.board.fail(
                RunError(
                    f"For {_WITHOUT / 60:.0f} minutes no node of the Ray cluster had room for a "
                    f"worker, which needs {self.needs}. Everything finished before is kept; resume "
                    "the run when there are nodes again."
                )
            )

    def opened(self, worker: RayWorker) -> None:
        """Note that a worker computes."""
        with self._lock:
            self._usable.add(worker)
            self._deaths.pop(worker.node.id, None)

    def refuse(self, worker: RayWorker, error: CalibriError) -> None:
        """Start no more workers on a node, and say why."""
        node = worker.node
        with self._lock:
            is_new = node.id not in self._refused
            self._refused[node.id] = type(error)(f"Node {node.name} of the Ray cluster: {error}")
            self._remove(worker)
        if is_new:
            self._workers.board.say(f"Node {node.name} gets no more units: {error}")

    def gone(self, worker: RayWorker, lost: WorkerLost) -> None:
        """Note that a worker is dead; another takes its place where there is room."""
        node = worker.node
        with self._lock:
            was_usable = worker in self._usable
            self._remove(worker)
            self._deaths[node.id] += not was_usable and not lost.blameless
            dies = self._deaths[node.id] == _DEATHS
        if dies:
            words = f"Its workers die while they load the models: {lost}."
            self.refuse(worker, RunError(words))

    def _remove(self, worker: RayWorker) -> None:
        self._usable.discard(worker)
        if worker in self._crew:
            self._crew.remove(worker)

    def close(self) -> None:
        """End all actors, and the cluster if it was started here."""
        self._closed.set()
        with contextlib.suppress(AttributeError):  # it never started
            self._watcher.join()
        if self._options.workers is not None:
            self.calls.request(self.needs, 0)
        self._workers.close()
        self.calls.close()
        self._stack.close()


def needs_of(config: RunConfig, threads: int, nodes: Iterable[Node]) -> Needs:
    """Say what a worker asks of its node: a GPU where there are any, and else the cores it uses."""
    gpus = config.sampling.ray.gpus_per_worker
    if gpus is None:
        gpus = float(config.device != "cpu" and any(node.gpus > 0 for node in nodes))
    return Needs(gpus, 1 if gpus else threads)


def greeting(config: RunConfig, needs: Needs, threads: int) -> tuple[Mapping[str, Any], int]:
    """Say what an actor is told before its first unit: it sees only the GPUs that Ray gives it."""
    alone = config.sampling.model_copy(update={"workers": 1, "ray": RayConfig()})
    device = "cuda" if needs.gpus else "cpu"
    told = config.model_copy(update={"device": device, "sampling": alone})
    return told.model_dump(mode="json"), threads


def check_versions(there: Mapping[str, str], name: str) -> None:
    """Refuse a node whose software is not that of the driver: scores would not be comparable.

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


def _described(nodes: Iterable[Node]) -> str:
    return ", ".join(str(node) for node in nodes) or "it has none"
