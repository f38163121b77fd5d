"""Errors in words: what a command that fails prints, and its exit code."""

from __future__ import annotations

import functools
import sys
import traceback
from collections.abc import Callable
from contextvars import ContextVar
from typing import ParamSpec

import typer
from rich.text import Text

from calibri.cli.display import command, err, printable, say, verbatim
from calibri.errors import CalibriError, Interrupted

UNEXPECTED = 70  # EX_SOFTWARE of sysexits.h: the fault is ours, not the user's
INTERRUPTED = 130

debug: ContextVar[bool] = ContextVar("debug", default=False)
"""Whether tracebacks are shown; set by ``--debug``."""

_P = ParamSpec("_P")


def guarded(function: Callable[_P, None]) -> Callable[_P, None]:
    """Wrap the body of a command so that no error leaves it as a traceback.

    A ``CalibriError`` becomes its message and its exit code, anything unforeseen a sentence on how
    to report it. A broken pipe passes: the command line framework ends silently on it.
    """

    @functools.wraps(function)
    def wrapper(*args: _P.args, **kwargs: _P.kwargs) -> None:
        try:
            function(*args, **kwargs)
        except (typer.Exit, BrokenPipeError):
            raise
        except KeyboardInterrupt as error:
            raise typer.Exit(_stopped("Stopped.")) from error
        except Interrupted as error:
            raise typer.Exit(_stopped(str(error))) from error
        except CalibriError as error:
            raise typer.Exit(_failed(error)) from error
        except Exception as error:
            raise typer.Exit(_unexpected(error)) from error

    return wrapper


def _stopped(message: str) -> int:
    say(err(), message)
    return INTERRUPTED


def _failed(error: CalibriError) -> int:
    if debug.get():
        traceback.print_exc()
    say(err(), Text.assemble(("Error:", "bold red"), " ", printable(str(error))))
    return error.exit_code


def _unexpected(error: Exception) -> int:
    if debug.get():
        traceback.print_exc()
    console = err()
    what = printable(f"{type(error).__name__}: {error}")
    say(console, Text.assemble(("Unexpected error:", "bold red"), " ", what))
    if not debug.get():
        say(
            console,
            "This is a fault of Calibri. Please report it with the traceback that this prints:",
        )
        verbatim(console, "  " + command("calibri", "--debug", *sys.argv[1:]))
    return UNEXPECTED
