"""Where a calibration is: in a folder of its own, or in that of the run that found it."""

from __future__ import annotations

from pathlib import Path

from calibri.errors import CalibrationError, RunError
from calibri.pipelines import can_be_repository

# Of the folder of a run (``calibri.runs.RunFolder``).
_CONFIG, _JOURNAL, _CALIBRATION = "config.json", "journal.jsonl", "calibration"


def check_source(source: str) -> None:
    """Refuse what can be neither a folder nor a repository, without asking anyone.

    Raises:
        CalibrationError: it is neither.
    """
    if not Path(source).is_dir() and not can_be_repository(source):
        raise CalibrationError(
            f"The calibration '{source}' was not loaded: it is neither a folder here nor a "
            "repository, which would be called user/name. Check the path."
        )


def calibration_folder(source: str | Path) -> Path:
    """Resolve a finished run to its calibration; any other folder or repository id stays.

    Raises:
        RunError: the run is not finished, so that it has no calibration yet.
    """
    path = Path(source)
    if not (path / _CONFIG).is_file():
        return path
    if (path / _CALIBRATION).is_dir():
        return path / _CALIBRATION
    if (path / _JOURNAL).is_file():
        raise RunError(
            f"The run {path} has no calibration yet: it is not finished. Continue it with "
            f"`calibri resume {path}`."
        )
    return path
