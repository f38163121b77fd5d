"""Which units wait, which are being computed and by whom, and what has come of them."""

from __future__ import annotations

import collections
import contextlib
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from calibri.errors import CalibriError, RunError
from calibri.scoring.units import Index, Result, Unit

# A unit by its index and what came of it; None where the state of the board changed otherwise.
Event = tuple[Index, Unit, Result] | CalibriError | None

_ATTEMPTS = 3
# A unit that takes so many times as long as its worker's others has an end that nobody knows.
_LATE = 2.0
# What is shorter, in units of the call, is no gap to begin a unit in that nobody waits for: a
# quarter keeps 64 workers busiest (benchmarks/scaling.py).
_GAP = 0.25


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
        index: of the unit.
        unit: what is computed.
        worker: by whom.
        started: seconds on the monotonic clock.
    """

    index: Index
    unit: Unit
    worker: object
    started: float


class Board:
    """The units of one call after another, shared by the threads of all workers.

    Idle workers compute the last units of a call once more where that is expected to end it sooner:
    the first result counts. Where it is not, and the call is to last a while, they compute what is
    ahead of it: units that nobody waits for yet. What they have begun of these is not lost when the
    call ends: the next one that waits for them, or has them ahead too, gets what comes of it.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._closed = False
        self._fatal: CalibriError | None = None
        self._said: collections.deque[str] = collections.deque()
        self._flying: dict[Index, list[Task]] = {}
        self._events: SimpleQueue[Event] = SimpleQueue()
        self._spoilt: set[Index] = set()  # failed while nobody waited for them
        self.begin([])

    def begin(
        self, units: Iterable[tuple[Index, Unit]], ahead: Iterable[tuple[Index, Unit]] = ()
    ) -> None:
        """Replace what is left of the last call by the units of another.

        Args:
            units: all of which are waited for.
            ahead: for workers that would idle, until the next call.
        """
        awaited = dict(units)
        wanted = dict(ahead) | awaited
        with self._changed:
            self._awaited = awaited.keys()
            begun = self._keep(wanted)
            self._todo = collections.deque(i for i in awaited.items() if i[0] not in begun)
            spare = wanted.keys() - awaited.keys() - begun - self._spoilt
            self._ahead = collections.deque(i for i in wanted.items() if i[0] in spare)
            self._ending = False
            self._lost: collections.Counter[Index] = collections.Counter()
            self._put_back: collections.Counter[Index] = collections.Counter()
            self._last: dict[object, float] = {}  # seconds of each worker's last awaited unit
            self._total = 0.0
            if self._fatal is not None:
                self._give_up(self._fatal)
            self._changed.notify_all()

    def _keep(self, wanted: Mapping[Index, Unit]) -> set[Index]:
        """Forget what is being computed or finished except for these units; say which are left."""

        def is_wanted(index: Index, unit: Unit) -> bool:
            return wanted.get(index) == unit  # another call's may have the same index

        flying = {i: tasks for i, tasks in self._flying.items() if is_wanted(i, tasks[0].unit)}
        events = [event for event in self._new_events(wait=False) if isinstance(event, tuple)]
        finished = [event for event in events if is_wanted(*event[:2])]
        for event in finished:
            self._events.put(event)
        self._flying = flying
        return {*flying, *(index for index, _, _ in finished)}

    def close(self) -> None:
        """Let every thread that waits for a unit go."""
        with self._changed:
            self._closed = True
            self._clear()
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
            flying = any(index in self._awaited for index in self._flying)
            return bool(self._todo) or flying or not self._events.empty()

    def taken(self) -> Iterator[tuple[Index, Unit]]:
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
            return Task(*self._todo.popleft(), worker, now)
        late = self._worth_copying(worker, now)
        if late is not None:
            return Task(late.index, late.unit, worker, now)
        if self._ahead and self._is_gap(worker, now):
            return Task(*self._ahead.popleft(), worker, now)
        return None

    def _worth_copying(self, worker: object, now: float) -> Task | None:
        """Find the unit in flight that would be finished sooner by an idle worker."""
        single = self._single()
        if not single or not self._last:
            return None
        longest = max(single, key=lambda task: self._rest(task, now))
        return longest if self._rest(longest, now) > self._expected(worker) else None

    def _is_gap(self, worker: object, now: float) -> bool:
        """Whether what is waited for will take a while."""
        flying = self._flying.items()
        rests = [self._rest(tasks[0], now) for i, tasks in flying if i in self._awaited]
        known = bool(self._last)
        return any(not known or rest > _GAP * self._expected(worker) for rest in rests)

    def _rest(self, task: Task, now: float) -> float:
        """Seconds until a unit is expected to be finished; without end where it is late."""
        expected, elapsed = self._expected(task.worker), now - task.started
        return expected - elapsed if elapsed < _LATE * expected else float("inf")

    def _single(self) -> list[Task]:
        """What is waited for and in the hands of one worker only."""
        flying = self._flying.items()
        return [tasks[0] for i, tasks in flying if len(tasks) == 1 and i in self._awaited]

    def _expected(self, worker: object) -> float:
        """Seconds that a worker needs for a unit; those of one call are of one kind."""
        return self._last.get(worker, self._total / max(1, len(self._last)))

    def _until_late(self) -> float | None:
        """Seconds until another unit in flight may be worth copying."""
        if not self._last:
            return None
        ends = [t.started + _LATE * self._expected(t.worker) for t in self._single()]
        return max(0.01, min(ends) - time.monotonic()) if ends else None

    def finish(self, task: Task, outcome: Result | CalibriError) -> None:
        """Take what came of a unit, unless a copy of it was sooner or nobody wants it any more."""
        with self._changed:
            if task not in self._flying.get(task.index, []):
                return
            del self._flying[task.index]
            is_awaited = task.index in self._awaited
            if isinstance(outcome, CalibriError):
                if is_awaited:
                    self._give_up(outcome)
                else:
                    self._spoilt.add(task.index)
                return
            seconds = time.monotonic() - task.started
            if is_awaited:
                self._total += seconds - self._last.get(task.worker, 0.0)
                self._last[task.worker] = seconds
            self._events.put((task.index, task.unit, {**outcome, **self._how(task, seconds)}))
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
            if self._closed or task not in tasks:
                return
            tasks.remove(task)
            if not tasks:
                del self._flying[task.index]
            if task.index in self._awaited:
                self._again(task, lost, alone=not tasks)
            elif not lost.blameless:
                self._spoilt.add(task.index)
            self._events.put(None)
            self._changed.notify_all()

    def _again(self, task: Task, lost: WorkerLost, *, alone: bool) -> None:
        self._put_back[task.index] += 1
        self._lost[task.index] += not lost.blameless
        if alone and not self._ending:
            self._todo.appendleft((task.index, task.unit))
        if self._lost[task.index] == _ATTEMPTS:
            self._give_up(_died_of(task.unit, str(lost)))

    def drop(self) -> None:
        """Give no more units of this call to anyone."""
        with self._changed:
            self._ending = True
            self._clear()

    def fail(self, error: CalibriError, *, at_once: bool = False) -> None:
        """End this call and all later ones.

        Args:
            error: why.
            at_once: nothing will come of what is in progress.
        """
        with self._changed:
            self._fatal = error
            if at_once:
                self._flying.clear()
            self._give_up(error)

    def _give_up(self, error: CalibriError) -> None:
        self._ending = True
        self._clear()
        self._events.put(error)

    def _clear(self) -> None:
        self._todo.clear()
        self._ahead.clear()

    def say(self, text: str) -> None:
        """Keep something that a person should know until the thread of the run asks for it."""
        self._said.append(text)
        self._events.put(None)

    def said(self) -> Iterator[str]:
        """Take what there is to say."""
        with contextlib.suppress(IndexError):
            while True:
                yield self._said.popleft()

    def results(
        self, failed: list[CalibriError] | None = None, *, wait: bool
    ) -> Iterator[tuple[Index, Result]]:
        """Take the results that have come, waiting for some change of the board if told to.

        Args:
            failed: gets the errors that have come.
            wait: whether to wait.
        """
        for event in self._new_events(wait=wait):
            if isinstance(event, tuple):
                yield event[0], event[2]
            elif event is not None and failed is not None:
                failed.append(event)

    def _new_events(self, *, wait: bool) -> Iterator[Event]:
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
