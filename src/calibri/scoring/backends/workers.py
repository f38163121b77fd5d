"""Share units among workers that come, go, hang and die, whatever a worker is.

There is one scheduler. Processes of this machine (``processes``) and actors of a Ray cluster
(``ray_cluster``) are two kinds of worker; each is served by a thread that takes a unit, has it
computed and takes the next.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

import torch

from calibri.errors import CalibriError, RunError
from calibri.scoring.backends.board import Board, Task, WorkerLost
from calibri.scoring.units import Backend, Index, Result, Unit

_Finished = tuple[Index, Result]
# Seconds in which threads hear of the end of their workers; one that computes is not waited for.
_FAREWELL = 5.0


class OtherWorker(Protocol):
    """Computes one unit at a time, elsewhere."""

    def open(self) -> None:
        """Wait until it can compute; called again after it was lost.

        Raises:
            WorkerLost: it will not come (again).
            CalibriError: neither it nor the others can go on.
        """
        ...

    def compute(self, unit: Unit) -> Result:
        """Give the result of a unit.

        Raises:
            WorkerLost: it died, or gave no answer in time and was ended.
            CalibriError: what the unit raised.
        """
        ...

    def stop(self) -> None:
        """End, whatever is in progress."""
        ...


class Workers:
    """Other workers, which start loading their models at once, and this process if it computes too.

    Args:
        here: computes in this process; None where it only waits.
        others: compute elsewhere; more may be added.
        threads: of this process; the same as of the others. Scores can depend on it in their last
            bits, so it must not depend on the number of workers.
        on_message: told what a person should know, in the thread of the run.
        name: of this process among the workers; others have an attribute ``name``. Results say who
            computed them where it is given.
    """

    def __init__(
        self,
        here: Backend | None,
        others: Sequence[OtherWorker],
        threads: int,
        on_message: Callable[[str], None] = lambda text: None,
        name: str = "",
    ) -> None:
        self._here = here
        self._others: list[OtherWorker] = []
        self._threads: dict[OtherWorker, threading.Thread] = {}
        self._on_message = on_message
        self._name = name
        self._threads_before = torch.get_num_threads()
        torch.set_num_threads(threads)
        self.board = Board()
        for worker in others:
            self.add(worker)

    def add(self, worker: OtherWorker) -> None:
        """Have one more worker, which gets units as soon as it is open."""
        self._others.append(worker)
        thread = threading.Thread(target=self._serve, args=(worker,), daemon=True)
        self._threads[worker] = thread
        thread.start()

    def _serve(self, worker: OtherWorker) -> None:
        """Give one worker units until the end, or until it does not come again."""
        board = self.board
        try:
            while not board.closed:
                worker.open()
                self._feed(worker)
        except WorkerLost:
            self._others.remove(worker)
        except Exception as error:
            board.fail(_in_words(error))
        finally:
            self._threads.pop(worker, None)

    def _feed(self, worker: OtherWorker) -> None:
        while (task := self.board.take(worker)) is not None:
            try:
                self._compute(worker, task)
            except WorkerLost as lost:
                self.board.put_back(task, lost)
                self.board.say(f"A worker was lost, others compute its unit: {lost}.")
                return

    def _compute(self, worker: OtherWorker, task: Task) -> None:
        try:
            outcome: Result | CalibriError = worker.compute(task.unit)
        except WorkerLost:
            raise
        except Exception as error:
            outcome = _in_words(error)
        self.board.finish(task, outcome)

    def run(
        self, units: Iterable[tuple[Index, Unit]], ahead: Iterable[tuple[Index, Unit]] = ()
    ) -> Iterator[_Finished]:
        """Yield the index of a unit and its result as units are finished, in any order.

        Args:
            units: all of which are waited for.
            ahead: the others compute them rather than idle, see ``Backend``. What fails of them is
                forgotten until it is waited for.

        Raises:
            CalibriError: what a unit raised, once those in progress are finished and yielded.
        """
        board = self.board
        board.begin(units, ahead)
        here: Iterator[_Finished] | None = None
        failed: list[CalibriError] = []
        while True:
            if here is None and self._here is not None and board.waiting:
                here = self._local(self._here)
            if here is None and not board.is_busy:
                break
            try:
                made = None if here is None else next(here, None)
            except CalibriError as error:
                made = None
                board.drop()
                failed.append(error)
            except BaseException:  # a fault here or Ctrl-C: keep what the others have finished
                board.drop()
                yield from board.results(wait=False)
                raise
            if made is None:
                here = None
            else:
                yield made
            yield from self._elsewhere(failed, wait=here is None and board.is_busy)
        if failed:
            raise failed[0]

    def _elsewhere(self, failed: list[CalibriError], *, wait: bool) -> Iterator[_Finished]:
        yield from self.board.results(failed, wait=wait)
        for text in self.board.said():
            self._on_message(text)

    def _local(self, here: Backend) -> Iterator[_Finished]:
        # A back-end that samples many units before it scores them would leave the others none.
        while self.board.waiting:
            share = -(-self.board.waiting // (len(self._others) + 1))
            before = time.monotonic()
            for index, result in here.run(itertools.islice(self.board.taken(), share)):
                now = time.monotonic()
                how = {"worker": self._name, "busy": now - before} if self._name else {}
                yield index, {**result, **how}
                before = time.monotonic()

    def close(self) -> None:
        """Stop every other worker, whatever it is doing."""
        self.board.close()
        for worker in list(self._others):
            worker.stop()
        until = time.monotonic() + _FAREWELL
        for thread in list(self._threads.values()):
            thread.join(max(0.0, until - time.monotonic()))
        if self._here is not None:
            self._here.close()
        torch.set_num_threads(self._threads_before)


def _in_words(error: Exception) -> CalibriError:
    if isinstance(error, CalibriError):
        return error
    return RunError(f"A worker cannot be used: {error!r}.")
