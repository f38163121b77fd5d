"""A worker: reads a configuration, then units, and answers each with its result in one line.

Started by ``processes``; it leaves when its input ends, that is when its parent does.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, TypeVar

import torch

from calibri.config import RunConfig, validate_config
from calibri.errors import CalibriError, NoMemoryError
from calibri.memory import is_out_of_memory
from calibri.scoring.backends.local import Local
from calibri.scoring.bench import Bench
from calibri.scoring.units import Backend, Result, Unit

Made = TypeVar("Made")


def serve(
    questions: BinaryIO,
    answers: BinaryIO,
    load: Callable[[RunConfig], Backend] = lambda config: Local(Bench(config)),
) -> None:
    """Answer every unit until the input ends.

    What a unit raises in plain words is an answer; any other exception ends the process, and the
    parent reads its last line.
    """
    greeting = json.loads(questions.readline())
    torch.set_num_threads(greeting["threads"])
    # Loaded before the first unit comes; what fails here is told then.
    backend = _made(greeting["config"], load)
    for line in questions:
        try:
            if isinstance(backend, CalibriError):
                raise backend
            answer: dict[str, Any] = {"result": result_of(backend, json.loads(line))}
        except CalibriError as error:
            answer = {"error": type(error).__name__, "message": str(error)}
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()


def result_of(backend: Backend, unit: Mapping[str, Any]) -> Result:
    """Have the only unit computed that was sent.

    Raises:
        CalibriError: what it raises.
    """
    ((_, result),) = backend.run([(0, Unit.from_json(unit))])
    return result


def _made(config: dict[str, Any], load: Callable[[RunConfig], Backend]) -> Backend | CalibriError:
    try:
        return loaded(config, load)
    except CalibriError as error:
        return error


def loaded(config: Mapping[str, Any], load: Callable[[RunConfig], Made]) -> Made:
    """Load what a worker computes with.

    Raises:
        CalibriError: something of it cannot be had, or the device has not enough memory for it.
    """
    try:
        return load(validate_config(config))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise NoMemoryError(
            f"The models of another worker do not fit on '{config['device']}': {error}. Everything "
            "finished before is kept. Lower sampling.workers, and resume the run."
        ) from error


def main() -> None:
    """Serve the parent on standard input and output."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is no answer
    serve(sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()
