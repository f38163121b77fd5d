"""From what a person types to the folder that is meant."""

from __future__ import annotations

from pathlib import Path

RUNS = Path("runs")
# Of which shapes are known, ``calibri.pipelines.is_published``; spelled here for a quick start.
KNOWN_MODELS = ("flux.1-dev", "sd3.5-medium", "stable-diffusion-3.5-medium", "qwen-image")


def run_path(given: Path) -> Path:
    """Take a folder as it is given; a bare name that is no folder here is one under ``runs/``."""
    bare = len(given.parts) == 1
    return RUNS / given if bare and not given.exists() else given


def calibration_source(given: str) -> str:
    """Resolve a run, or its name, to its calibration; other folders and repository ids stay.

    Raises:
        RunError: the run is not finished, so that it has no calibration yet.
        CalibrationError: it can be neither a folder nor a repository.
    """
    from calibri.artifact import calibration_folder, check_source

    path = run_path(Path(given))
    found = calibration_folder(path)
    if found != path:
        return str(found)
    check_source(given)
    return given


def check_pipeline(name: str, known_here: bool = False) -> None:
    """Refuse what can be no pipeline at once: before torch is imported, which takes seconds.

    Args:
        name: what a person typed.
        known_here: whether the names of ``KNOWN_MODELS`` will do, too.

    Raises:
        UnsupportedModelError: it is neither a folder here nor the name of a repository.
    """
    from calibri.pipelines import place_of

    if not (known_here and name.lower() in KNOWN_MODELS):
        place_of(name)
