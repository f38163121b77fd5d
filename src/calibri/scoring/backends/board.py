"""Which units wait, which are being computed and by whom, and what has come of them."""

from __future__ import annotations

import collections
import contextlib
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from calibri.errors import CalibriError, RunError
from calibri.scoring.units import Result, Unit

# Index of a unit and what came of it; None where the state of the board changed otherwise.
Event = tuple[int, Result] | CalibriError | None

_ATTEMPTS = 3
# A unit that takes so many times as long as its worker's others has an end that nobody knows.
_LATE = 2.0


class WorkerLost(Exception):  # noqa: N818 - what happened to a worker, never shown as an error
    """A worker died, or hung and was ended; another may compute its unit.

    Args:
        words: the last that is known of it.
        blameless: whether it was surely not the unit that it died of.
    """

    def __init__(self, words: str, *, blameless: bool = False) -> None:
        super().__init__(words)
        self.blameless = blameless


@dataclass(frozen=True, eq=False)
class Task:
    """One unit in the hands of one worker.

    Attributes:
        call: number of the call that the unit is of.
        index: of the unit in it.
        unit: what is computed.
        worker: by whom.
        started: seconds on the monotonic clock.
    """

    call: int
    index: int
    unit: Unit
    worker: object
    started: float


class Board:
    """The units of one call after another, shared by the threads of all workers.

    Idle workers compute the last units of a call once more where that is expected to end it sooner:
    the first result counts.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._closed = False
        self._fatal: CalibriError | None = None
        self._said: collections.deque[str] = collections.deque()
        self._call = 0
        self._reset([])

    def _reset(self, units: Iterable[tuple[int, Unit]]) -> None:
        self._todo = collections.deque(units)
        self._ending = False
        self._flying: dict[int, list[Task]] = {}
        self._lost: collections.Counter[int] = collections.Counter()
        self._put_back: collections.Counter[int] = collections.Counter()
        self._last: dict[object, float] = {}  # seconds of each worker's last unit
        self._total = 0.0
        self._events: SimpleQueue[Event] = SimpleQueue()

    def begin(self, units: Iterable[tuple[int, Unit]]) -> None:
        """Replace what is left of the last call by the units of another."""
        with self._changed:
            self._call += 1
            self._reset(units)
            if self._fatal is not None:
                self._give_up(self._fatal)
            self._changed.notify_all()

    def close(self) -> None:
        """Let every thread that waits for a unit go."""
        with self._changed:
            self._closed = True
            self._todo.clear()
            self._changed.notify_all()

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._closed

    @property
    def waiting(self) -> int:
        """Units that nobody has taken."""
        return len(self._todo)

    @property
    def is_busy(self) -> bool:
        """Whether something is still to come of this call."""
        with self._changed:
            return bool(self._todo or self._flying) or not self._events.empty()

    def taken(self) -> Iterator[tuple[int, Unit]]:
        """Take units until none are left, for a back-end that says itself when one is finished."""
        with contextlib.suppress(IndexError):
            while True:
                yield self._todo.popleft()

    def take(self, worker: object) -> Task | None:
        """Wait for a unit to compute, however long; None once all is over."""
        with self._changed:
            while not self._closed:
                task = self._next(worker)
                if task is not None:
                    self._flying.setdefault(task.index, []).append(task)
                    return task
                self._changed.wait(self._until_late())
        return None

    def _next(self, worker: object) -> Task | None:
        now = time.monotonic()
        if self._todo:
            return Task(self._call, *self._todo.popleft(), worker, now)
        late = self._worth_copying(worker, now)
        return None if late is None else Task(self._call, late.index, late.unit, worker, now)

    def _worth_copying(self, worker: object, now: float) -> Task | None:
        """Find the unit in flight that would be finished sooner by an idle worker."""
        single = [tasks[0] for tasks in self._flying.values() if len(tasks) == 1]
        if not single or not self._last:
            return None

        def rest(task: Task) -> float:
            expected, elapsed = self._expected(task.worker), now - task.started
            return expected - elapsed if elapsed < _LATE * expected else float("inf")

        longest = max(single, key=rest)
        return longest if rest(longest) > self._expected(worker) else None

    def _expected(self, worker: object) -> float:
        """Seconds that a worker needs for a unit; those of one call are of one kind."""
        return self._last.get(worker, self._total / max(1, len(self._last)))

    def _until_late(self) -> float | None:
        """Seconds until another unit in flight may be worth copying."""
        if not self._last:
            return None
        ends = [
            tasks[0].started + _LATE * self._expected(tasks[0].worker)
            for tasks in self._flying.values()
            if len(tasks) == 1
        ]
        return max(0.01, min(ends) - time.monotonic()) if ends else None

    def finish(self, task: Task, outcome: Result | CalibriError) -> None:
        """Take what came of a unit, unless a copy of it was sooner or its call is over."""
        with self._changed:
            if task.call != self._call or task.index not in self._flying:
                return
            del self._flying[task.index]
            if isinstance(outcome, CalibriError):
                self._give_up(outcome)
                return
            seconds = time.monotonic() - task.started
            self._total += seconds - self._last.get(task.worker, 0.0)
            self._last[task.worker] = seconds
            self._events.put((task.index, {**outcome, **self._how(task, seconds)}))
            if not self._todo:
                self._changed.notify_all()

    def _how(self, task: Task, seconds: float) -> Result:
        """Say who computed a unit and what it took, where workers have names."""
        name, lost = getattr(task.worker, "name", ""), self._put_back[task.index]
        if not name:
            return {}
        return {"worker": name, "busy": seconds} | ({"attempts": lost + 1} if lost else {})

    def put_back(self, task: Task, lost: WorkerLost) -> None:
        """Let others compute the unit of a worker that is lost, at once.

        A unit of which several workers died ends the call instead.
        """
        with self._changed:
            tasks = self._flying.get(task.index, [])
            if self._closed or task.call != self._call or task not in tasks:
                return
            tasks.remove(task)
            self._put_back[task.index] += 1
            self._lost[task.index] += not lost.blameless
            if not tasks:
                del self._flying[task.index]
                if not self._ending:
                    self._todo.appendleft((task.index, task.unit))
            if self._lost[task.index] == _ATTEMPTS:
                self._give_up(_died_of(task.unit, str(lost)))
            self._events.put(None)
            self._changed.notify_all()

    def drop(self) -> None:
        """Give no more units of this call to anyone."""
        with self._changed:
            self._ending = True
            self._todo.clear()

    def fail(self, error: CalibriError) -> None:
        """End this call and all later ones."""
        with self._changed:
            self._fatal = error
            self._give_up(error)

    def _give_up(self, error: CalibriError) -> None:
        self._ending = True
        self._todo.clear()
        self._events.put(error)

    def say(self, text: str) -> None:
        """Keep something that a person should know until the thread of the run asks for it."""
        self._said.append(text)
        self._events.put(None)

    def said(self) -> Iterator[str]:
        """Take what there is to say."""
        with contextlib.suppress(IndexError):
            while True:
                yield self._said.popleft()

    def arrived(self, *, wait: bool) -> Iterator[Event]:
        """Take what has come of units, at least one if told to wait."""
        with contextlib.suppress(Empty):
            yield self._events.get(block=wait)
            while True:
                yield self._events.get_nowait()


def _died_of(unit: Unit, words: str) -> RunError:
    return RunError(
        f"A worker died {_ATTEMPTS} times on the same {len(unit.rows)} images, the last time "
        f"saying: {words or 'nothing'}. Everything finished before is kept. If memory ran out, "
        "lower sampling.workers or sampling.batch_size, and resume the run."
    )
