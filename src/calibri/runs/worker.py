"""A worker: reads a configuration, then units, and answers each with its scores in one line.

Started by ``processes``; it leaves when its input ends, that is when its parent does.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any, BinaryIO

import torch

from calibri.config import validate_config
from calibri.errors import CalibriError, RunError
from calibri.memory import is_out_of_memory
from calibri.runs import Engine, PromptSets
from calibri.scoring import Scored, Unit


class _Server:
    """An engine without prompts of its own."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._engine = Engine(validate_config(config), PromptSets((), (), ()))
        self._backend = self._engine.in_process()

    def compute(self, unit: Unit) -> Scored:
        measures = {name: self._engine.measure(name) for name in unit.measures}
        ((_, scores),) = self._backend.run([(0, unit)], measures)
        return scores


def serve(questions: BinaryIO, answers: BinaryIO) -> None:
    """Answer every unit until the input ends.

    What a unit raises in plain words is an answer; any other exception ends the process, and the
    parent reads its last line.
    """
    greeting = json.loads(questions.readline())
    torch.set_num_threads(greeting["threads"])
    # Loaded before the first unit comes; what fails here is told then.
    server = _made(greeting["config"])
    for line in questions:
        try:
            if isinstance(server, CalibriError):
                raise server
            answer: dict[str, Any] = {"scores": server.compute(Unit.from_json(json.loads(line)))}
        except CalibriError as error:
            answer = {"error": type(error).__name__, "message": str(error)}
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()


def _made(config: dict[str, Any]) -> _Server | CalibriError:
    try:
        return _Server(config)
    except CalibriError as error:
        return error
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return RunError(
            f"The models of another worker do not fit on '{config['device']}': {error}. Everything "
            "finished before is kept. Lower sampling.workers, and resume the run."
        )


def main() -> None:
    """Serve the parent on standard input and output."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is no answer
    serve(sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()
