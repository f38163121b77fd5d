"""Compute units in several processes, one for each device or group of cores.

A worker is a fresh Python that is told a configuration and then units, as lines of JSON on its
standard input; it answers on its standard output. So nothing is unpickled, a script needs no guard
around its main part, and a worker whose parent dies reads the end of its input and leaves.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import IO, Any, Protocol

import torch

from calibri import errors
from calibri.config import RunConfig
from calibri.errors import CalibriError, ConfigError, RunError
from calibri.scoring.units import Backend, Result, Unit

_Todo = collections.deque[tuple[int, Unit]]
_Outcome = tuple[int, Result | CalibriError]

# Modules come from where this process finds them: -m would look in the working directory first.
_WORKER = "calibri.scoring.backends.worker"
_MAIN = f"import sys; sys.path[:] = sys.argv[1:]; from {_WORKER} import main; main()"
_ATTEMPTS = 3
_PATIENCE = 20.0
_MOST = 8
# What a process costs beside its models, in units that pay it back.
_LEAST_IMAGES = 3000
_MODEL_BYTES = 2**30


def default_workers(device: str, model_bytes: int, images: int) -> int:
    """Count the workers that pay off.

    Small models leave cores idle, so each core gets a model of its own; on GPUs the user says how
    many may be taken.

    Args:
        device: where to run, as in ``RunConfig``.
        model_bytes: size of everything a worker loads.
        images: images that will be sampled.
    """
    if device != "cpu" or images < _LEAST_IMAGES:
        return 1
    return max(1, min(cores(), _MOST, _MODEL_BYTES // max(model_bytes, 1)))


def cores() -> int:
    """Count the cores that this process may use."""
    with contextlib.suppress(AttributeError):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def worker_devices(device: str, count: int) -> list[str]:
    """Give every worker its device: the GPUs in turn from the given one on, or the CPU.

    Raises:
        ConfigError: there are fewer GPUs than workers.
    """
    if not device.startswith("cuda"):
        return [device] * count
    found = torch.cuda.device_count()
    if count > found:
        raise ConfigError(
            f"sampling.workers is {count}, one GPU each, but torch sees {found}. Lower it, or set "
            "CUDA_VISIBLE_DEVICES."
        )
    first = torch.device(device).index or 0
    return [f"cuda:{(first + index) % found}" for index in range(count)]


class OtherProcess(Protocol):
    """Computes one unit at a time, elsewhere."""

    def compute(self, unit: Unit) -> Result:
        """Give the result of a unit.

        Raises:
            CalibriError: what the unit raised, or the process died of it.
        """
        ...

    def stop(self) -> None:
        """End, whatever is in progress."""
        ...


class Workers:
    """This process and others, which start loading their models at once.

    Args:
        here: computes in this process.
        others: compute in theirs.
        threads: of this process; the same as of the others. Scores can depend on it in their last
            bits, so it must not depend on the number of workers.
    """

    def __init__(self, here: Backend, others: Sequence[OtherProcess], threads: int) -> None:
        self._here = here
        self._others = others
        self._threads_before = torch.get_num_threads()
        torch.set_num_threads(threads)

    def run(self, units: Iterable[tuple[int, Unit]]) -> Iterator[tuple[int, Result]]:
        """Yield the index of a unit and its result as units are finished, in any order.

        Raises:
            CalibriError: what a unit raised, once those in progress are finished and yielded.
        """
        todo = collections.deque(units)
        done: SimpleQueue[_Outcome | None] = SimpleQueue()
        for worker in self._others:
            threading.Thread(target=_drain, args=(worker, todo, done), daemon=True).start()
        here: Iterator[_Outcome] | None = self._local(todo)
        running = len(self._others)
        failed: list[CalibriError] = []
        while here is not None or running or not done.empty():
            try:
                here = _advance(here, done)
            except BaseException:  # a fault here or Ctrl-C: keep what the others have finished
                todo.clear()
                finished = [outcome for outcome in _arrived(done, wait=False) if outcome]
                yield from ((i, s) for i, s in finished if not isinstance(s, CalibriError))
                raise
            for outcome in _arrived(done, wait=here is None and running > 0):
                if outcome is None:
                    running -= 1
                elif isinstance(outcome[1], CalibriError):
                    todo.clear()
                    failed.append(outcome[1])
                else:
                    yield outcome[0], outcome[1]
        if failed:
            raise failed[0]

    def _local(self, todo: _Todo) -> Iterator[_Outcome]:
        # A back-end that samples many units before it scores them would leave the others none.
        while todo:
            share = -(-len(todo) // (len(self._others) + 1))
            yield from self._here.run(itertools.islice(_taken(todo), share))

    def close(self) -> None:
        """Stop every other process, whatever it is doing."""
        for worker in self._others:
            worker.stop()
        self._here.close()
        torch.set_num_threads(self._threads_before)


def _advance(
    here: Iterator[_Outcome] | None, done: SimpleQueue[_Outcome | None]
) -> Iterator[_Outcome] | None:
    """Compute one unit in this process, if any is left."""
    try:
        if here is not None:
            done.put(next(here))
    except StopIteration:
        return None
    except CalibriError as error:
        done.put((-1, error))
        return None
    return here


def _arrived(done: SimpleQueue[_Outcome | None], *, wait: bool) -> Iterator[_Outcome | None]:
    """Take what has arrived, at least one if told to wait."""
    with contextlib.suppress(Empty):
        yield done.get(block=wait)
        while True:
            yield done.get_nowait()


def _taken(todo: _Todo) -> Iterator[tuple[int, Unit]]:
    """Take units until none are left."""
    with contextlib.suppress(IndexError):
        while True:
            yield todo.popleft()


def _drain(worker: OtherProcess, todo: _Todo, done: SimpleQueue[_Outcome | None]) -> None:
    """Let one worker take units until none are left or one fails, which ends the run."""
    try:
        for index, unit in _taken(todo):
            done.put((index, worker.compute(unit)))
    except Exception as error:
        todo.clear()
        if not isinstance(error, CalibriError):
            error = RunError(f"A worker cannot be used: {error!r}.")
        done.put((-1, error))
    finally:
        done.put(None)  # without it the run would wait for ever


@dataclass
class Pace:
    """How long units take, and so how long an answer may be waited for.

    Attributes:
        longest: seconds of the slowest unit so far; None before the first.
        least: seconds that any unit may take.
        first: seconds until the first answer of a process, which downloads and loads its models.
    """

    longest: float | None = None
    least: float = 300.0
    first: float = 7200.0

    @property
    def patience(self) -> float:
        """Seconds after which a process is taken for stuck: a multiple of what units took."""
        return self.first if self.longest is None else max(self.least, _PATIENCE * self.longest)

    def add(self, seconds: float) -> None:
        """Note how long a unit took."""
        self.longest = max(self.longest or 0.0, seconds)


def _listen(stream: IO[bytes], lines: SimpleQueue[bytes]) -> None:
    """Pass on what a worker says, at last the part of a line that its death cut off."""
    with contextlib.suppress(ValueError, OSError), stream:
        for line in stream:
            lines.put(line)
    lines.put(b"")


def _speak(stream: IO[bytes], messages: SimpleQueue[bytes | None]) -> None:
    """Tell a worker what it is to be told, until it or the run ends."""
    with contextlib.suppress(ValueError, OSError), stream:  # found out when it does not answer
        while (message := messages.get()) is not None:
            stream.write(message)
            stream.flush()


def worker_command() -> list[str]:
    """Say how a worker is started."""
    return [sys.executable, "-c", _MAIN, *sys.path]


def result_of(answer: Mapping[str, Any]) -> Result:
    """Take the result out of what a worker answered.

    Raises:
        CalibriError: what the unit raised there.
    """
    if "error" in answer:
        raise getattr(errors, answer["error"], RunError)(answer["message"])
    result: Result = answer["result"]
    return result


class Worker:
    """One process, started at once and again when it dies.

    Args:
        config: what it makes its bench of.
        device: of its own.
        threads: that torch uses there.
        pace: how long units take, shared with the other workers of a run.

    Attributes:
        said: what it wrote on its standard error since its last answer.
    """

    def __init__(
        self, config: RunConfig, device: str, threads: int, pace: Pace | None = None
    ) -> None:
        self._pace = pace or Pace()
        single = config.sampling.model_copy(update={"workers": 1})
        config = config.model_copy(update={"device": device, "sampling": single})
        self._greeting = {"config": config.model_dump(mode="json"), "threads": threads}
        self._stopped = False
        self._starting = threading.Lock()  # none may start once all are stopped
        self._start()

    def _restart(self) -> None:
        with self._starting:
            if self._stopped:
                raise RunError("The workers were stopped.")
            self._start()

    def _start(self) -> None:
        self.said: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - outlives this function
        self._process = subprocess.Popen(
            worker_command(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.said,
            env=os.environ | {"OMP_NUM_THREADS": str(self._greeting["threads"])},
            start_new_session=True,  # Ctrl-C is for the parent, which lets units finish or not
        )
        # A process that is stuck takes no input either: only threads may wait for it.
        self._lines: SimpleQueue[bytes] = SimpleQueue()
        self._messages: SimpleQueue[bytes | None] = SimpleQueue()
        self._has_answered = False
        for talk, stream, queue in (
            (_listen, self._process.stdout, self._lines),
            (_speak, self._process.stdin, self._messages),
        ):
            threading.Thread(target=talk, args=(stream, queue), daemon=True).start()
        self._write(self._greeting)

    def compute(self, unit: Unit) -> Result:
        """Send a unit and wait for its result, in a new process where one died of it.

        Raises:
            RunError: it was stopped, or three processes died of the unit.
            CalibriError: what the unit raised there.
        """
        last = ""
        for _ in range(_ATTEMPTS):
            started = time.monotonic()
            try:
                self._write(unit.to_json())
                answer = self._read()
            except (Empty, EOFError, ValueError) as error:  # it is stuck, or it died
                if self._stopped:
                    raise RunError("The workers were stopped.") from None
                last = self._last_words()
                if isinstance(error, Empty):
                    last = f"no answer within {time.monotonic() - started:.0f} seconds"
                self._restart()
                continue
            if self._has_answered:  # the first answer took the loading of models too
                self._pace.add(time.monotonic() - started)
            self._has_answered = True
            self._forget_words()
            return result_of(answer)
        raise RunError(
            f"A worker died {_ATTEMPTS} times on the same {len(unit.rows)} images, the last time "
            f"saying: {last or 'nothing'}. Everything finished before is kept. If memory ran out, "
            "lower sampling.workers or sampling.batch_size, and resume the run."
        )

    def _write(self, message: Mapping[str, Any]) -> None:
        self._messages.put(json.dumps(message).encode() + b"\n")

    def _read(self) -> dict[str, Any]:
        patience = self._pace.patience if self._has_answered else self._pace.first
        line = self._lines.get(timeout=patience)
        if not line.endswith(b"\n"):
            raise EOFError
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _last_words(self) -> str:
        self._process.kill()
        code = self._process.wait()
        self.said.seek(0)
        lines = self.said.read().decode(errors="replace").strip().splitlines()
        self._close()
        return lines[-1] if lines else (f"signal {-code}" if code < 0 else f"exit code {code}")

    def _forget_words(self) -> None:
        # What was said before an answer explains no later death, and would fill the disk. The
        # worker writes at the same offset.
        os.ftruncate(self.said.fileno(), 0)
        os.lseek(self.said.fileno(), 0, os.SEEK_SET)

    def stop(self) -> None:
        """Kill the process."""
        with self._starting:
            self._stopped = True
        self._process.kill()
        self._process.wait()
        self._close()

    def _close(self) -> None:
        self._messages.put(None)
        with contextlib.suppress(OSError):
            self.said.close()
