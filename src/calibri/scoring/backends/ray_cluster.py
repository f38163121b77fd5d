"""Compute units on the nodes of a Ray cluster.

The driver, that is this process, holds the search and the journal; each worker is an actor with a
pipeline and rewards of its own. Ray starts actors, carries units and results, tells when a process
or a node dies and counts resources. What is decided here is how many actors each node gets, and
which nodes get none: those whose software differs, or that lack a model or memory.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from calibri.config import RayConfig, RunConfig
from calibri.errors import CalibriError, ConfigError, RunError
from calibri.scoring.backends.board import WorkerLost
from calibri.scoring.backends.nodes import Needs, Node, place
from calibri.scoring.backends.pace import Pace
from calibri.scoring.backends.ray_calls import Calls
from calibri.scoring.backends.ray_connection import connection, reach
from calibri.scoring.backends.ray_workers import Judge, Judges, Lane, Member, UnitWorker
from calibri.scoring.backends.workers import Workers
from calibri.scoring.units import Index, Result, Unit

# Seconds between two looks at the nodes, and without any worker before a run gives up.
_LOOK = 1.0
_WITHOUT = 1800.0
# Seconds without an answer of the head after which it is gone: Ray ends this process after 60.
_HEADLESS = 20.0
# Seconds in which Ray may take leave of a cluster without a head.
_FAREWELL = 5.0
# Deaths of a node's workers before one has computed a unit, after which it gets no more.
_DEATHS = 3


class RayCluster:
    """A back-end whose workers are actors, as many as the cluster has room for at any time.

    Args:
        config: of the run.
        threads: of torch in each worker.
        on_message: told what a person should know.
        on_page: told the address of a page on which the cluster shows this work.

    Attributes:
        calls: what is asked of Ray.
        pace: how long units take.

    Raises:
        ConfigError: there is no Ray, no cluster, or no room in it.
    """

    def __init__(
        self,
        config: RunConfig,
        threads: int,
        on_message: Callable[[str], None] = print,
        on_page: Callable[[str], None] = print,
    ) -> None:
        self._config, self._threads = config, threads
        self._options = config.sampling.ray
        self._stack = contextlib.ExitStack()
        ray, page = self._stack.enter_context(connection())
        self.calls = Calls(ray)
        self.pace = Pace()
        self._lock = threading.Lock()
        self._crew: list[Member] = []
        self._proven: set[Member] = set()
        self._refused: dict[str, CalibriError] = {}
        self._deaths: Counter[str] = Counter()
        self._numbers = itertools.count(1)
        self._closed = threading.Event()
        self._headless = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._workers = Workers(None, [], threads, on_message)
        self._judges = Judges(self)
        try:
            self._start(self.calls.nodes())
        except BaseException:
            self.close()
            raise
        if page is not None:
            on_page(page)

    def _start(self, nodes: list[Node]) -> None:
        self._needs = needs_of(self._config, self._threads, nodes)
        self._judge_needs = _judge_needs(self._options, self._needs, self._threads)
        self._hire()
        if self._options.workers is not None:
            self._ask_for_room(self._options.workers, self._options.reward_workers)
        elif not self._is_complete():
            raise ConfigError(
                f"No node of the Ray cluster has room for a worker, which needs {self._needs}"
                f"{self._beside_judges()}: {_described(nodes)}. Set sampling.ray.gpus_per_worker, "
                "or sampling.ray.workers if the cluster grows when it is asked."
            )
        self._alone_since = time.monotonic()
        self._watcher.start()
        threading.Thread(target=self._watch_head, args=(self.calls.head(),), daemon=True).start()

    def _beside_judges(self) -> str:
        count = self._options.reward_workers
        return f", beside {count} for rewards, which need {self._judge_needs}" if count else ""

    def _ask_for_room(self, workers: int, judges: int) -> None:
        self.calls.request([self._needs] * workers + [self._judge_needs] * judges)

    def run(
        self, units: Iterable[tuple[Index, Unit]], ahead: Iterable[tuple[Index, Unit]] = ()
    ) -> Iterator[tuple[Index, Result]]:
        """Yield the index of a unit and its result as units are finished, see ``Workers``."""
        return self._workers.run(units, ahead)

    def _watch(self) -> None:
        """Have a worker wherever there is room, until all is over."""
        while not self._closed.wait(_LOOK):
            try:
                self._hire()
                self._check_hope()
            except Exception as error:
                self._workers.board.fail(RunError(f"The Ray cluster cannot be asked: {error!r}."))
                return

    def _watch_head(self, address: str) -> None:
        """End the run in words when the head is gone; what is asked of Ray then hangs."""
        heard = time.monotonic()
        while not self._closed.wait(_LOOK):
            try:
                reach(address)
                heard = time.monotonic()
            except OSError as error:
                if time.monotonic() - heard > _HEADLESS:
                    self._headless.set()
                    self._workers.board.fail(_without_head(address, error), at_once=True)
                    return

    def _hire(self) -> None:
        """Start workers where there is room; those for rewards, without which none goes on, first.

        Here and not by Ray's own restarts: where an actor may live is ours to say, and the models
        that it had loaded are lost in any case.
        """
        with self._lock:
            for node in self._places(Judge, self._judge_needs, self._options.reward_workers):
                judge = Judge(self, self._judge_needs, node, self._greeting(self._judge_needs))
                self._crew.append(judge)
                threading.Thread(target=_open, args=(judge,), daemon=True).start()
            for node in self._places(UnitWorker, self._needs, self._options.workers):
                self._add_worker(node)

    def _places(self, kind: type[Member], needs: Needs, most: int | None) -> list[Node]:
        nodes = {node.id: node for node in self.calls.nodes() if node.id not in self._refused}
        for member in self._crew:
            if member.node.id in nodes:
                nodes[member.node.id] = nodes[member.node.id].without(member.needs)
        there = sum(isinstance(member, kind) for member in self._crew)
        return place(nodes.values(), needs, None if most is None else most - there)

    def _add_worker(self, node: Node) -> None:
        apart = self._options.reward_workers > 0
        greeting = (*self._greeting(self._needs), not apart)
        judges = self._judges if apart else None
        policy = self._config.rewards.on_failure
        worker = UnitWorker(self, self._needs, node, greeting, judges, policy)
        self._crew.append(worker)
        self._workers.add(worker)
        if apart:
            self._workers.add(Lane(worker))

    def _greeting(self, needs: Needs) -> tuple[Mapping[str, Any], int]:
        """What an actor is told: it sees only the GPUs that Ray gives it."""
        config, apart = self._config, self._options.reward_workers > 0
        sampling = config.sampling.model_copy(update={"workers": 1, "ray": RayConfig()})
        # Where rewards are apart, nothing is there for the pipeline to make room for.
        offload = {"offload": config.rewards.offload and not apart}
        told = {
            "device": "cuda" if needs.gpus else "cpu",
            "sampling": sampling,
            "rewards": config.rewards.model_copy(update=offload),
        }
        return config.model_copy(update=told).model_dump(mode="json"), self._threads

    def _is_complete(self) -> bool:
        """Whether there are workers of each kind, if only ones that load."""
        kinds = {type(member) for member in self._crew}
        return UnitWorker in kinds and (Judge in kinds or not self._options.reward_workers)

    def _check_hope(self) -> None:
        """End a run that nobody works for and for which nobody will."""
        with self._lock:
            complete, refused = self._is_complete(), list(self._refused.values())
        if complete:
            self._alone_since = time.monotonic()
        elif refused and self._options.workers is None:
            self._workers.board.fail(refused[-1])
        elif time.monotonic() - self._alone_since > _WITHOUT:
            self._workers.board.fail(
                RunError(
                    f"For {_WITHOUT / 60:.0f} minutes no node of the Ray cluster had room for a "
                    f"worker, which needs {self._needs}{self._beside_judges()}. Everything "
                    "finished before is kept; resume the run when there are nodes again."
                )
            )

    def number(self) -> int:
        """Give each worker another number."""
        return next(self._numbers)

    def opened(self, member: Member) -> None:
        """Note that a worker has loaded its models."""
        if isinstance(member, Judge):
            self.proved(member)
            self._judges.add(member)

    def proved(self, member: Member) -> None:
        """Note that a worker has what it takes to compute units."""
        with self._lock:
            self._proven.add(member)
            self._deaths.pop(member.node.id, None)

    def refuse(self, member: Member, error: CalibriError) -> None:
        """Start no more workers on a node, and say why."""
        node = member.node
        with self._lock:
            is_new = node.id not in self._refused
            self._refused[node.id] = type(error)(f"Node {node.name} of the Ray cluster: {error}")
            self._remove(member)
        if is_new:
            self._workers.board.say(f"Node {node.name} gets no more units: {error}")

    def gone(self, member: Member, lost: WorkerLost) -> None:
        """Note that a worker is dead; another takes its place where there is room."""
        node = member.node
        with self._lock:
            was_proven = member in self._proven
            self._remove(member)
            self._deaths[node.id] += not was_proven and not lost.blameless
            dies = self._deaths[node.id] >= _DEATHS
        if isinstance(member, Judge):
            self._workers.board.say(f"A worker for rewards was lost, others do its work: {lost}.")
        if dies and not self._closed.is_set():
            words = f"Its workers die before their first unit is done: {lost}."
            self.refuse(member, RunError(words))

    def _remove(self, member: Member) -> None:
        self._proven.discard(member)
        if member in self._crew:
            self._crew.remove(member)

    def close(self) -> None:
        """End all actors, and the cluster if it was started here."""
        self._closed.set()
        if self._headless.is_set():
            self._abandon()
            return
        if self._watcher.is_alive():
            self._watcher.join()
        if self._options.workers is not None:
            self._ask_for_room(0, 0)
        self._judges.close()
        for member in list(self._crew):
            member.stop()
        self._workers.close()
        self.calls.close()
        self._stack.close()

    def _abandon(self) -> None:
        """Leave a cluster whose head is gone, whose processes end by themselves."""
        self.calls.close()
        self._judges.close()
        self._workers.close()
        leaving = threading.Thread(target=self._stack.pop_all().close, daemon=True)
        leaving.start()
        leaving.join(_FAREWELL)


def _without_head(address: str, error: OSError) -> RunError:
    return RunError(
        f"The head of the Ray cluster at {address} has not answered for {_HEADLESS:.0f} seconds "
        f"({error}), and with it the cluster is gone. Everything finished before is kept; resume "
        "the run when there is a cluster again."
    )


def _open(judge: Judge) -> None:
    # Its crew was told already.
    with contextlib.suppress(WorkerLost):
        judge.open()


def needs_of(config: RunConfig, threads: int, nodes: Iterable[Node]) -> Needs:
    """Say what a worker asks of its node: a GPU where there are any, and else the cores it uses."""
    gpus = config.sampling.ray.gpus_per_worker
    if gpus is None:
        gpus = float(config.device != "cpu" and any(node.gpus > 0 for node in nodes))
    return Needs(gpus, 1 if gpus else threads)


def _judge_needs(options: RayConfig, needs: Needs, threads: int) -> Needs:
    gpus = options.gpus_per_reward_worker
    gpus = needs.gpus if gpus is None else gpus
    return Needs(gpus, 1 if gpus else threads)


def _described(nodes: Iterable[Node]) -> str:
    return ", ".join(str(node) for node in nodes) or "it has none"
