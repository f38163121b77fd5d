"""Watchers that a caller brings: objects, or names of trackers; none of them can end a run."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Sequence
from typing import Any

from calibri.errors import CalibriWarning, ConfigError, first_line, suggestion
from calibri.progress import Progress, Together

# Name, which is also that of the extra and of our module, to the class there.
_LOGGERS = {
    "tensorboard": "TensorBoard",
    "wandb": "WeightsAndBiases",
    "trackio": "Trackio",
}


def make_callbacks(given: Sequence[Any] | None) -> list[Progress]:
    """Make what a caller gave into watchers.

    Args:
        given: objects, or names of trackers: ``"tensorboard"``, ``"wandb"`` or ``"trackio"``.

    Raises:
        ConfigError: something else was given, or a tracker is not known or not installed.
    """
    return [_made(callback) for callback in given or ()]


def _made(callback: Any) -> Progress:
    if isinstance(callback, str):
        return _logger(callback)
    if not isinstance(callback, Progress):
        raise ConfigError(
            f"{callback!r} is no callback. Give an object whose class inherits from "
            f"calibri.Progress, or the name of a tracker: {', '.join(_LOGGERS)}."
        )
    return callback


def _logger(name: str) -> Progress:
    if name not in _LOGGERS:
        raise ConfigError(
            f"There is nothing to log to called '{name}'. {suggestion(name, _LOGGERS)}"
        )
    try:
        module = importlib.import_module(f"calibri.runs.loggers.{name}")
    except ImportError as error:
        raise ConfigError(
            f"Logging to '{name}' needs a package that cannot be imported here "
            f"({first_line(error)}). Install it with: pip install 'calibri[{name}]'"
        ) from error
    made: Progress = getattr(module, _LOGGERS[name])()
    return made


class Callbacks(Together):
    """Passes events on; a watcher that raises is named, and hears no more.

    Everything that was computed is in the journal before anybody hears of it, so nothing is lost.

    Args:
        callbacks: in which order they are told.
        progress: is told of one that failed.
    """

    def __init__(self, callbacks: Sequence[Progress], progress: Progress) -> None:
        super().__init__(callbacks)
        self._progress = progress

    def _tell(self, event: str, *what: object) -> None:
        for callback in list(self._watchers):
            try:
                getattr(callback, event)(*what)
            except Exception as error:
                self._watchers.remove(callback)
                self._say(callback, event, error)

    def _say(self, callback: Progress, event: str, error: Exception) -> None:
        text = (
            f"The callback {type(callback).__name__} failed in '{event}' "
            f"({type(error).__name__}: {first_line(error)}). The run goes on without it."
        )
        self._progress.message(text)
        warnings.warn(text, CalibriWarning, stacklevel=2)
