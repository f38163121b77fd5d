"""Processes of this machine that compute units, one for each device or group of cores.

A worker is a fresh Python that is told a configuration and then units, as lines of JSON on its
standard input; it answers on its standard output. So nothing is unpickled, a script needs no guard
around its main part, and a worker whose parent dies reads the end of its input and leaves. None of
this holds for ``concurrent.futures.ProcessPoolExecutor``, which gives up all of its processes when
one dies.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from queue import Empty, SimpleQueue
from typing import IO, Any

import torch

from calibri import errors
from calibri.config import RunConfig
from calibri.errors import ConfigError, RunError
from calibri.scoring.backends.board import WorkerLost
from calibri.scoring.backends.pace import Pace
from calibri.scoring.units import Result, Unit

# Modules come from where this process finds them: -m would look in the working directory first.
_WORKER = "calibri.scoring.backends.worker"
_MAIN = f"import sys; sys.path[:] = sys.argv[1:]; from {_WORKER} import main; main()"
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
        name: by which results say who computed them; empty where they do not.

    Attributes:
        said: what it wrote on its standard error since its last answer.
    """

    def __init__(
        self,
        config: RunConfig,
        device: str,
        threads: int,
        pace: Pace | None = None,
        name: str = "",
    ) -> None:
        self.name = name
        self._pace = pace or Pace()
        single = config.sampling.model_copy(update={"workers": 1})
        config = config.model_copy(update={"device": device, "sampling": single})
        self._greeting = {"config": config.model_dump(mode="json"), "threads": threads}
        self._stopped = False
        self._starting = threading.Lock()  # none may start once all are stopped
        self._start()

    def open(self) -> None:
        """Start the process again where it has died."""
        with self._starting:
            if self._stopped:
                raise WorkerLost("the workers were stopped", blameless=True)
            if self._process.returncode is not None:
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
        """Send a unit and wait for its result.

        Raises:
            WorkerLost: the process died or is stuck.
            CalibriError: what the unit raised there.
        """
        if self._has_answered and self._process.poll() is not None:
            raise WorkerLost(self._last_words(), blameless=True)
        started = time.monotonic()
        try:
            self._write(unit.to_json())
            answer = self._read()
        except (Empty, EOFError, ValueError) as error:  # it is stuck, or it died
            if self._stopped:
                raise WorkerLost("the workers were stopped", blameless=True) from None
            last = self._last_words()
            if isinstance(error, Empty):
                last = f"no answer within {time.monotonic() - started:.0f} seconds"
            raise WorkerLost(last) from None
        if self._has_answered:  # the first answer took the loading of models too
            self._pace.add(time.monotonic() - started)
        self._has_answered = True
        self._forget_words()
        return result_of(answer)

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
