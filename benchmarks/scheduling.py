"""A cluster of workers that compute units, simulated event by event; nothing is sampled.

Times are in seconds. What is drawn for a unit is a function of the seed, the unit and how often it
was started, so that procedures are compared on the same luck.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter, deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np

from calibri.seeds import derive_seed

_GAP = 0.25  # of a unit; a shorter wait is not filled
_LATE = 2.0  # a unit that takes so many times as long as expected has an end that nobody knows


@dataclass(frozen=True)
class Cluster:
    """Workers.

    Attributes:
        speeds: of each, in units of the reference GPU.
        times: recorded times of equal units, in units of their mean.
        jitter: standard deviation that they are scaled to.
        lost_each: seconds after which a worker is lost, on average.
        away: seconds until a lost worker is back with its models loaded.
        dispatch: seconds of the driver for a unit, one after the other.
    """

    speeds: tuple[float, ...]
    times: tuple[float, ...] = (1.0,)
    jitter: float = 0.0
    lost_each: float = math.inf
    away: float = 120.0
    dispatch: float = 0.0


@dataclass(frozen=True)
class Unit:
    """Images that one worker computes together; ``cost`` is seconds on the reference GPU."""

    number: int
    cost: float


@dataclass
class _Task:
    unit: Unit
    worker: int
    start: float
    expected: float


# When, in which order of those at the same time, and what happens.
_Event = tuple[float, int, Callable[[], None]]


class Simulation:
    """Workers that take units from a queue, or each from its own.

    Args:
        cluster: the workers.
        seed: of all draws.
        copies: idle workers compute the last units once more, where that is expected to end sooner.
        static: every worker has a fixed share of the units that are submitted together.

    Attributes:
        now: seconds since the start.
        done: numbers of the units that are finished.
    """

    def __init__(
        self, cluster: Cluster, seed: int = 0, *, copies: bool = False, static: bool = False
    ) -> None:
        self._cluster, self._seed, self._copies, self._static = cluster, seed, copies, static
        workers = range(len(cluster.speeds))
        self.now = 0.0
        self.done: set[int] = set()
        self._known: set[int] = set()
        self._urgent: deque[Unit] = deque()
        self._background: deque[Unit] = deque()
        self._own: list[deque[Unit]] = [deque() for _ in workers]
        self._idle: set[int] = set()
        self._stocked: set[int] = set()  # static: workers with something in their own queues
        self._order: list[tuple[float, int]] = []  # idle workers, the fastest first
        self._late: dict[int, _Task] = {}
        self._flying: Counter[int] = Counter()
        self._tasks: dict[int, _Task] = {}
        self._starts: dict[int, int] = {}
        self._events: list[_Event] = []
        self._count = 0
        self._driver = 0.0
        self._awaited: set[int] = set()
        self._losses = np.random.default_rng((seed, 1))
        moments = np.asarray(cluster.times, dtype=np.float64)
        spread = float(moments.std()) or 1.0
        self._draws = np.maximum(0.25, 1 + (moments / moments.mean() - 1) / spread * cluster.jitter)
        for worker in workers:
            self._free(worker)
            self._lose_later(worker)

    def submit(self, units: Sequence[Unit], *, urgent: bool = True) -> None:
        """Queue units: urgent ones behind the others, what fills gaps before the others."""
        if self._static:
            for place, unit in enumerate(units):
                worker = place % len(self._own)
                self._own[worker].append(unit)
                self._stocked.add(worker)
        elif urgent:
            self._urgent.extend(units)
        else:
            self._background.extendleft(reversed(units))
        self._known |= {unit.number for unit in units}

    def request(self, units: Collection[Unit]) -> None:
        """Make units urgent, whether they were to fill gaps or are new; not if they are begun."""
        numbers = {unit.number for unit in units}
        waiting = [unit for unit in self._background if unit.number in numbers]
        self._background = deque(u for u in self._background if u.number not in numbers)
        self.submit([*waiting, *(unit for unit in units if unit.number not in self._known)])

    def wait(self, units: Collection[Unit], share: float = 1.0) -> None:
        """Let time pass until a share of the units is finished."""
        self._awaited = {unit.number for unit in units} - self.done
        most = len(units) - math.ceil(share * len(units) - 1e-9)
        self._assign()
        while len(self._awaited) > most:
            self.now, _, happens = heapq.heappop(self._events)
            happens()
            self._assign()

    def _at(self, time: float, happens: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._events, (time, self._count, happens))

    def _assign(self) -> None:
        """Give idle workers something to do, the fastest first."""
        if self._static:
            for worker in list(self._idle & self._stocked):
                self._start(worker, self._own[worker].popleft())
            return
        while self._idle:
            worker = self._fastest_idle()
            unit = (
                self._next(self._urgent) or self._worth_copying(worker) or self._gap_filler(worker)
            )
            if unit is None:
                return
            self._start(worker, unit)

    def _fastest_idle(self) -> int:
        while self._order[0][1] not in self._idle:  # it began something since
            heapq.heappop(self._order)
        return self._order[0][1]

    def _gap_filler(self, worker: int) -> Unit | None:
        """Find a unit that nobody waits for, where what is waited for will take a while."""
        speed = self._cluster.speeds[worker]
        awaited = (t for t in self._tasks.values() if t.unit.number in self._awaited)
        is_gap = self._background and any(
            self._rest(task) > _GAP * task.unit.cost / speed for task in awaited
        )
        return self._next(self._background) if is_gap else None

    def _next(self, queue: deque[Unit]) -> Unit | None:
        while queue:
            unit = queue.popleft()
            if unit.number not in self.done:
                return unit
        return None

    def _worth_copying(self, worker: int) -> Unit | None:
        """Find the awaited unit in flight that an idle worker is expected to finish sooner."""
        if not self._copies:
            return None
        speed = self._cluster.speeds[worker]
        # One on a worker of the same speed ends sooner by itself, unless it is late.
        slower = self._tasks.values() if speed > min(self._cluster.speeds) else self._late.values()
        single = [
            task
            for task in slower
            if task.unit.number in self._awaited and self._flying[task.unit.number] == 1
        ]
        longest = max(single, key=self._rest, default=None)
        if longest is None or self._rest(longest) <= longest.unit.cost / speed:
            return None
        return longest.unit

    def _rest(self, task: _Task) -> float:
        if task.worker in self._late:
            return math.inf
        return task.expected - (self.now - task.start)

    def _free(self, worker: int) -> None:
        self._idle.add(worker)
        heapq.heappush(self._order, (-self._cluster.speeds[worker], worker))

    def _start(self, worker: int, unit: Unit) -> None:
        self._idle.discard(worker)
        if not self._own[worker]:
            self._stocked.discard(worker)
        self._driver = max(self.now, self._driver) + self._cluster.dispatch
        expected = unit.cost / self._cluster.speeds[worker]
        task = _Task(unit, worker, self._driver, expected)
        self._tasks[worker] = task
        self._flying[unit.number] += 1
        self._at(task.start + expected * self._draw(unit), lambda: self._finish(task))
        if self._copies:
            self._at(task.start + _LATE * expected, lambda: self._grow_late(task))

    def _grow_late(self, task: _Task) -> None:
        if self._tasks.get(task.worker) is task:
            self._late[task.worker] = task

    def _let_go(self, worker: int) -> _Task | None:
        task = self._tasks.pop(worker, None)
        self._late.pop(worker, None)
        if task is not None:
            self._flying[task.unit.number] -= 1
        return task

    def _draw(self, unit: Unit) -> float:
        start = self._starts[unit.number] = self._starts.get(unit.number, 0) + 1
        place = derive_seed(self._seed, "time", unit.number, start) % len(self._draws)
        return float(self._draws[place])

    def _finish(self, task: _Task) -> None:
        if self._tasks.get(task.worker) is task:
            self._let_go(task.worker)
            self._free(task.worker)
            self.done.add(task.unit.number)
            self._awaited.discard(task.unit.number)

    def _lose_later(self, worker: int) -> None:
        if math.isfinite(self._cluster.lost_each):
            after = self._losses.exponential(self._cluster.lost_each)
            self._at(self.now + after, lambda: self._lose(worker))

    def _lose(self, worker: int) -> None:
        """Take a worker away with what it computes, which somebody has to begin anew."""
        self._idle.discard(worker)
        task = self._let_go(worker)
        if task is not None and task.unit.number not in self.done:
            self._put_back(worker, task.unit)
        self._at(self.now + self._cluster.away, lambda: self._return(worker))

    def _put_back(self, worker: int, unit: Unit) -> None:
        if self._static:
            self._own[worker].appendleft(unit)
            self._stocked.add(worker)
        else:
            self._urgent.appendleft(unit)

    def _return(self, worker: int) -> None:
        self._free(worker)
        self._lose_later(worker)
