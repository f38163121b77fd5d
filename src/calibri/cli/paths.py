"""From what a person types to the folder that is meant."""

from __future__ import annotations

from pathlib import Path

RUNS = Path("runs")


def run_path(given: Path) -> Path:
    """Take a folder as it is given; a bare name that is no folder here is one under ``runs/``."""
    bare = len(given.parts) == 1
    return RUNS / given if bare and not given.exists() else given


def calibration_source(given: str) -> str:
    """Resolve a run, or its name, to its calibration; other folders and repository ids stay.

    Raises:
        RunError: the run is not finished, so that it has no calibration yet.
    """
    from calibri.artifact import calibration_folder

    path = run_path(Path(given))
    found = calibration_folder(path)
    return given if found == path else str(found)
