"""``calibri gallery``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from calibri.cli.display import loading, out, verbatim
from calibri.cli.paths import calibration_source, run_path

_Calibrations = Annotated[
    list[str],
    typer.Argument(
        metavar="CALIBRATION...", help="Finished runs, calibration folders, or repositories."
    ),
]
_Output = Annotated[
    Path, typer.Option("--output", metavar="FILE", help="The page; replaced if it is there.")
]
_Title = Annotated[str, typer.Option("--title", help="Of the page.")]


def gallery(
    calibrations: _Calibrations,
    output: _Output = Path("gallery.html"),
    title: _Title = "Calibrations",
) -> None:
    """Show several calibrations on one page: model, steps, gain, pictures and how to load it.

    The page is one HTML file that needs nothing else. Runs have pictures.

        calibri gallery runs/flux-15 runs/sd35-10 --output index.html
    """
    with loading("Drawing the page"):
        from calibri import gallery as draw_gallery

        verbatim(out(), str(draw_gallery(_sources(calibrations), output=output, title=title)))


def _sources(given: list[str]) -> list[str]:
    # A run that is given by its name alone is shown with its folder.
    return [str(run_path(Path(g))) if calibration_source(g) != g else g for g in given]
