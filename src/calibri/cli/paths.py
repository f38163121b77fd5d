"""From what a person types to the folder that is meant."""

from __future__ import annotations

from pathlib import Path

from calibri.errors import RunError

RUNS = Path("runs")


def run_path(given: Path) -> Path:
    """Take a folder as it is given; a bare name that is no folder here is one under ``runs/``."""
    bare = len(given.parts) == 1
    return RUNS / given if bare and not given.exists() else given


def calibration_source(given: str) -> str:
    """Resolve a run to its calibration; any other folder or repository id stays as it is.

    Raises:
        RunError: the run is not finished, so that it has no calibration yet.
    """
    from calibri.runs import RunFolder

    path = run_path(Path(given))
    if not (path / "config.json").is_file():
        return given
    folder = RunFolder.open(path)
    if not folder.calibration_path.is_dir():
        raise RunError(
            f"The run {path} has no calibration yet: it is not finished. Continue it with "
            f"`calibri resume {path}`."
        )
    return str(folder.calibration_path)
