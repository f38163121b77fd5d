"""``calibri export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from calibri.artifact import EXPORTERS, Format
from calibri.cli.display import err, loading, out, say, verbatim
from calibri.cli.options import CalibrationArgument, PipelineOption, StrengthOption
from calibri.cli.paths import calibration_source
from calibri.cli.quiet import quiet_libraries


def export(
    calibration: CalibrationArgument,
    output: Annotated[
        Path, typer.Option("--output", metavar="PATH", help="What to write; must not exist.")
    ],
    format: Annotated[
        Format,
        typer.Option(
            "--format",
            help="The authors' JSON vector, a file for ComfyUI's LoRA loader, text for its node "
            "FluxBlocksBuster, or a PEFT folder.",
        ),
    ],
    pipeline: PipelineOption = None,
    strength: StrengthOption = 1.0,
) -> None:
    """Write a calibration in the format of another tool.

    calibri export runs/20260131-120000 --format comfyui --output calibrated.safetensors
    calibri export user/flux-calibri --format authors --output cmaes_step_0200.json
    calibri export user/flux-calibri --format peft --output adapter
    """
    source = calibration_source(calibration)
    with loading("Writing the calibration"):
        from calibri import export as export_calibration

        quiet_libraries()
        written = export_calibration(
            source, output, format=format, pipeline=pipeline, strength=strength
        )
    verbatim(out(), str(written))
    say(err(), EXPORTERS[format].advice)
