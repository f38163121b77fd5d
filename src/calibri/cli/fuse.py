"""``calibri fuse``."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated

import typer

from calibri.cli.display import err, loading, out, say, verbatim
from calibri.cli.options import (
    MACHINE,
    CalibrationArgument,
    DtypeName,
    PipelineOption,
    StrengthOption,
)
from calibri.cli.paths import calibration_source
from calibri.cli.quiet import quiet_libraries
from calibri.errors import CalibriWarning


def fuse(
    calibration: CalibrationArgument,
    output: Annotated[
        Path, typer.Option("--output", metavar="DIR", help="Folder to write; new or empty.")
    ],
    pipeline: PipelineOption = None,
    strength: StrengthOption = 1.0,
    dtype: Annotated[
        DtypeName | None,
        typer.Option(
            "--dtype",
            help="Precision of the saved weights; by default each keeps the one it is stored in.",
            show_default=False,
            rich_help_panel=MACHINE,
        ),
    ] = None,
    check: Annotated[
        list[str] | None,
        typer.Option(
            "--check",
            metavar="PROMPT",
            help="Say how far images of this prompt are from those with the calibration loaded; "
            "repeatable.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Fold a calibration into the weights and save an ordinary diffusers pipeline.

    What is saved needs no Calibri to run and costs exactly what the original did.

        calibri fuse runs/20260131-120000 --output calibrated
        calibri fuse runs/20260131-120000 --output calibrated --check "a red circle"
    """
    source = calibration_source(calibration)
    with loading("Folding the calibration into the weights"):
        from calibri import fuse as fuse_pipeline

        quiet_libraries()
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always", CalibriWarning)
            folder = fuse_pipeline(
                source, output, pipeline=pipeline, strength=strength, dtype=dtype
            )
    for warning in said:
        if issubclass(warning.category, CalibriWarning):
            say(err(), str(warning.message))
    verbatim(out(), str(folder))
    if check:
        _show_difference(source, folder, check, pipeline, strength)
    say(err(), f"Load it with DiffusionPipeline.from_pretrained({str(folder)!r}).")


def _show_difference(
    source: Path | str, folder: Path, prompts: list[str], pipeline: str | None, strength: float
) -> None:
    with loading("Comparing images"):
        from calibri.artifact import Calibration, fused_difference

        calibration = Calibration.from_pretrained(source)
        found = fused_difference(calibration, folder, prompts, pipeline=pipeline, strength=strength)
    say(err(), str(found))
