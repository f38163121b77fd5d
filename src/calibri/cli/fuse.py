"""``calibri fuse``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from calibri.cli.display import err, loading, out, say, verbatim
from calibri.cli.options import CalibrationArgument, DtypeOption, PipelineOption, StrengthOption
from calibri.cli.paths import calibration_source
from calibri.cli.quiet import quiet_libraries


def fuse(
    calibration: CalibrationArgument,
    output: Annotated[
        Path, typer.Option("--output", metavar="DIR", help="Folder to write; new or empty.")
    ],
    pipeline: PipelineOption = None,
    strength: StrengthOption = 1.0,
    dtype: DtypeOption = "float32",
) -> None:
    """Fold a calibration into the weights and save an ordinary diffusers pipeline.

    What is saved needs no Calibri to run and costs exactly what the original did.

        calibri fuse runs/20260131-120000 --output calibrated
    """
    source = calibration_source(calibration)
    with loading("Folding the calibration into the weights"):
        from calibri import fuse as fuse_pipeline

        quiet_libraries()
        folder = fuse_pipeline(source, output, pipeline=pipeline, strength=strength, dtype=dtype)
    verbatim(out(), str(folder))
    say(err(), f"Load it with DiffusionPipeline.from_pretrained({str(folder)!r}).")
