"""Every error a user can cause, in plain words.

A message says what failed, what we saw and what to do next. The command line prints it without
a traceback and exits with a non-zero code; the Python API raises it.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection


class CalibriError(Exception):
    """Base of all errors that a user's input or environment can cause."""

    exit_code = 1


class CalibriWarning(UserWarning):
    """Something works, and does not do what was probably meant."""


class ConfigError(CalibriError):
    """A configuration value, file or override is wrong."""

    exit_code = 2


class PromptError(CalibriError):
    """A prompt file is missing, empty or malformed."""

    exit_code = 2


class UnsupportedModelError(CalibriError):
    """A pipeline or transformer has no sites that Calibri can scale."""

    exit_code = 3


class CalibrationError(CalibriError):
    """A calibration file is damaged or belongs to another model."""

    exit_code = 3


class FuseError(CalibriError):
    """Scales cannot be folded into these weights."""

    exit_code = 3


class GuidanceError(CalibriError):
    """The rows of a forward cannot be told apart as conditional and unconditional."""

    exit_code = 3


class RewardError(CalibriError):
    """A reward is unknown, could not be loaded, or returned scores that are not finite."""

    exit_code = 4


class NothingScoredError(RewardError):
    """Every (prompt, seed) pair was dropped, since some image of each could not be scored."""


class RunError(CalibriError):
    """A run folder is missing, in use, read-only, full, or belongs to another configuration."""

    exit_code = 5


class JournalError(RunError):
    """A journal is damaged somewhere else than in its last, torn record."""


class StudyError(CalibriError):
    """A study cannot be made, served or read."""

    exit_code = 6


class NoMemoryError(RunError):
    """The memory of a device is too small for the least that can be computed at once."""


class Interrupted(CalibriError):  # noqa: N818 - it is an outcome the user asked for, not a fault
    """The user stopped a run; everything already computed is in its journal."""

    exit_code = 130


def suggestion(name: str, known: Collection[str]) -> str:
    """Say what a name that does not exist was probably meant to be, and list those that do."""
    near = difflib.get_close_matches(name, known, n=1)
    meant = f"Did you mean '{near[0]}'? " if near else ""
    return f"{meant}Known are {', '.join(known)}."


def first_line(error: BaseException) -> str:
    """Return the first line of what an error of another library says, without its full stop."""
    return (str(error).strip().splitlines() or [repr(error)])[0].rstrip(".")
