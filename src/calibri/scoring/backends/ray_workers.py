"""Workers that are actors, seen from the driver."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from calibri.config import OnFailure
from calibri.errors import CalibriError, NoMemoryError
from calibri.scoring.backends.board import WorkerLost
from calibri.scoring.backends.nodes import Needs, Node
from calibri.scoring.backends.pace import Pace
from calibri.scoring.backends.ray_actors import RewardActor, UnitActor, check_versions
from calibri.scoring.backends.ray_calls import Calls, ObjectGone
from calibri.scoring.backends.retry import Values, finished
from calibri.scoring.units import Result, Row, Unit

# Seconds without a word after which a worker is asked whether it lives before it gets a unit.
_IDLE = 1.0
_ATTEMPTS = 3


class Crew(Protocol):
    """What workers tell of themselves."""

    calls: Calls
    pace: Pace

    def number(self) -> int:
        """Give each worker another number."""

    def opened(self, member: Member) -> None:
        """Note that a worker has loaded its models."""

    def proved(self, member: Member) -> None:
        """Note that a worker has computed a unit, so its node has what that takes."""

    def refuse(self, member: Member, error: CalibriError) -> None:
        """Use the node of a worker no more."""

    def gone(self, member: Member, lost: WorkerLost) -> None:
        """Note that a worker is dead."""


class Member:
    """One actor on one node.

    Args:
        crew: that it belongs to.
        kind: class of the actor.
        needs: of it.
        node: where it is to live.
        greeting: what its ``load`` is told.
    """

    def __init__(
        self, crew: Crew, kind: type, needs: Needs, node: Node, greeting: Sequence[Any]
    ) -> None:
        self._crew, self._calls = crew, crew.calls
        self._greeting = greeting
        self.needs, self.node = needs, node
        self.name = f"{node.name} {crew.number()}"
        self._actor = self._calls.start(kind, needs, node)
        self._was_open = False
        self._fate = WorkerLost("it is gone", blameless=True)
        self._heard = 0.0
        self.settled = threading.Event()  # it can be used, or never will

    def open(self) -> None:
        """Wait until the node has room, then compare versions and load the models.

        Raises:
            WorkerLost: it cannot be used, or is dead: actors do not come again, others do.
        """
        try:
            if self._was_open:
                self.stop()
                raise self._fate
            self._was_open = True
            check_versions(self.ask("versions", timeout=None), self.node.name)
            self.ask("load", *self._greeting, timeout=self._crew.pace.first)
        except CalibriError as error:
            self._leave_out(error)
        except WorkerLost as lost:
            self._crew.gone(self, lost)
            raise
        else:
            self._heard = time.monotonic()
            self._crew.opened(self)
        finally:
            self.settled.set()

    def _leave_out(self, error: CalibriError) -> None:
        self._crew.refuse(self, error)
        self.stop()
        raise WorkerLost("its node is left out", blameless=True) from error

    def ask(self, method: str, *args: Any, timeout: float | None, **options: Any) -> Any:
        """Call a method of the actor, see ``Calls.ask``."""
        found = self._calls.ask(
            self._actor, method, *args, timeout=timeout, node=self.node, **options
        )
        self._heard = time.monotonic()
        return found

    def check_alive(self) -> None:
        """Ask whether it lives, where nothing was heard of it for a while.

        Raises:
            WorkerLost: it does not, through no fault of what it would be asked next.
        """
        if time.monotonic() - self._heard > _IDLE:
            try:
                self.ask("ping", timeout=self._crew.pace.least)
            except WorkerLost as lost:
                raise WorkerLost(str(lost), blameless=True) from lost

    def stop(self) -> None:
        """Kill the actor."""
        self._calls.kill(self._actor)


class UnitWorker(Member):
    """Computes whole units, or samples them for others that hold the rewards.

    Args:
        crew: that it belongs to.
        needs: of it.
        node: where it is to live.
        greeting: what its ``load`` is told.
        judges: hold the rewards; None where it does.
        on_failure: of the run, for scores that come from judges.
    """

    def __init__(
        self,
        crew: Crew,
        needs: Needs,
        node: Node,
        greeting: Sequence[Any],
        judges: Judges | None,
        on_failure: OnFailure,
    ) -> None:
        super().__init__(crew, UnitActor, needs, node, greeting)
        self._judges, self._on_failure = judges, on_failure
        self._has_computed = False

    def compute(self, unit: Unit) -> Result:
        """Send a unit and wait for its result.

        Raises:
            WorkerLost: the actor died or hangs, or its node cannot compute units.
            CalibriError: what the unit raised there.
        """
        self.check_alive()
        started = time.monotonic()
        try:
            result = self._computed(unit)
        except CalibriError as error:
            if not isinstance(error, NoMemoryError) and self._has_computed:
                raise
            self._leave_out(error)
        except WorkerLost as lost:
            if self._has_computed:
                raise
            # The first unit loads rewards and needs all memory: its death is laid to the node.
            self._fate = lost
            raise WorkerLost(str(lost), blameless=True) from lost
        if self._has_computed:
            self._crew.pace.add(time.monotonic() - started)
        else:
            self._has_computed = True
            self._crew.proved(self)
        return result

    def _computed(self, unit: Unit) -> Result:
        if self._judges is None or unit.kind != "scores":
            found: Result = self.ask("compute", unit.to_json(), timeout=self._crew.pace.patience)
            return found
        judges, smaller = self._judges, {}

        def sample(unit: Unit, rows: Sequence[Row]) -> Any:
            part = replace(unit, rows=tuple(rows)).to_json()
            about, pixels = self.ask("sample", part, timeout=self._crew.pace.patience, parts=2)
            smaller.update(about["smaller"])
            return about["broken"], pixels

        def measure(unit: Unit, rows: Sequence[Row], pictures: Any) -> Values:
            return judges.measure(replace(unit, rows=tuple(rows)).to_json(), pictures)

        pictures = sample(unit, unit.rows)
        values = measure(unit, unit.rows, pictures)
        return finished(unit, values, self._on_failure, sample, measure) | smaller


class Lane:
    """A second unit in the hands of a worker: it is sampled while the first one is measured.

    Args:
        worker: samples one unit at a time.
    """

    def __init__(self, worker: UnitWorker) -> None:
        self._worker = worker
        self._was_open = False
        self.name = worker.name
        self.compute = worker.compute

    def open(self) -> None:
        """Wait for the worker; what follows shows whether it can be used."""
        self._worker.settled.wait()
        if self._was_open:
            raise WorkerLost("it is gone", blameless=True)
        self._was_open = True

    def stop(self) -> None:
        """Do nothing: the worker is stopped itself."""
        self._worker.settled.set()


class Judge(Member):
    """Holds the rewards alone.

    Args:
        crew: that it belongs to.
        needs: of it.
        node: where it is to live.
        greeting: what its ``load`` is told.
    """

    def __init__(self, crew: Crew, needs: Needs, node: Node, greeting: Sequence[Any]) -> None:
        super().__init__(crew, RewardActor, needs, node, greeting)
        self.units = 0


class Judges:
    """Workers that hold the rewards, each asked when it has the least to do.

    Args:
        crew: that they belong to.
    """

    def __init__(self, crew: Crew) -> None:
        self._crew = crew
        self._changed = threading.Condition()
        self._open: list[Judge] = []
        self._closed = False

    def add(self, judge: Judge) -> None:
        """Have one that has loaded its models."""
        with self._changed:
            self._open.append(judge)
            self._changed.notify_all()

    def measure(self, unit: Mapping[str, Any], pictures: tuple[Any, Any]) -> Values:
        """Have images measured; another judge does it when one dies.

        Args:
            unit: the rows and measures that are meant.
            pictures: which images are broken, and a reference to all of them.

        Raises:
            WorkerLost: the images are lost, or every judge dies of them.
            CalibriError: what a reward raised.
        """
        last = WorkerLost("the run is over", blameless=True)
        for _ in range(_ATTEMPTS):
            judge = self._least_busy()
            try:
                judge.check_alive()
                values: Values = judge.ask(
                    "measure", unit, *pictures, timeout=self._crew.pace.patience
                )
                return values
            except ObjectGone:
                raise
            except WorkerLost as lost:
                last = lost
                self._drop(judge, lost)
            finally:
                with self._changed:
                    judge.units -= 1
        raise last

    def _least_busy(self) -> Judge:
        with self._changed:
            while not self._open and not self._closed:
                self._changed.wait()
            if self._closed:
                raise WorkerLost("the run is over", blameless=True)
            judge = min(self._open, key=lambda judge: judge.units)
            judge.units += 1
            return judge

    def _drop(self, judge: Judge, lost: WorkerLost) -> None:
        with self._changed:
            if judge not in self._open:
                return
            self._open.remove(judge)
        judge.stop()
        self._crew.gone(judge, lost)

    def close(self) -> None:
        """Let those that wait for a judge go."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
