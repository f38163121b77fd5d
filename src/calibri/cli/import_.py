"""``calibri import``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from calibri.cli.display import command, err, loading, out, say, verbatim
from calibri.cli.options import GranularityName
from calibri.cli.quiet import quiet_libraries

_File = Annotated[
    Path, typer.Argument(metavar="FILE", help="The authors' JSON file, cmaes_step_XXXX.json.")
]
_Pipeline = Annotated[
    str,
    typer.Option(
        "--pipeline",
        metavar="PIPELINE",
        help="The pipeline it was made for; only its configuration is read.",
    ),
]
_Output = Annotated[
    Path | None,
    typer.Option("--output", metavar="DIR", help="Folder to write; default: FILE's name."),
]
_Granularity = Annotated[
    GranularityName, typer.Option("--granularity", help="One scalar per block, layer or gate.")
]
_Members = Annotated[
    int, typer.Option("--members", help="Members of the ensemble; 2 under guidance.")
]
_GuidanceScale = Annotated[
    float | None,
    typer.Option("--guidance-scale", help="Guidance of their search; default: the paper's."),
]
_AsTheyRan = Annotated[
    bool,
    typer.Option("--as-they-ran", help="Round to bfloat16, as their code did."),
]
_Revision = Annotated[
    str | None, typer.Option("--revision", help="Branch, tag or commit of the repository.")
]


def import_(
    file: _File,
    pipeline: _Pipeline,
    output: _Output = None,
    granularity: _Granularity = "gate",
    members: _Members = 1,
    guidance_scale: _GuidanceScale = None,
    as_they_ran: _AsTheyRan = False,
    revision: _Revision = None,
) -> None:
    """Turn a coefficient file of the paper's authors into a calibration.

    calibri import cmaes_step_0200.json --pipeline black-forest-labs/FLUX.1-dev
    calibri import cmaes_step_2280.json --pipeline my-sd35-medium --members 2 --as-they-ran
    """
    with loading("Reading the vector"):
        from calibri import import_ as import_calibration

        quiet_libraries()
        imported = import_calibration(
            file,
            pipeline,
            output=output,
            granularity=granularity,
            members=members,
            guidance_scale=guidance_scale,
            as_they_ran=as_they_ran,
            revision=revision,
        )
    verbatim(out(), str(imported.folder))
    found = imported.calibration.coefficients
    count = sum(map(len, found.scales)) + len(found.output_weights)
    use = command("calibri", "generate", pipeline, "--calibration", imported.folder, "A PROMPT")
    say(err(), f"{count} values. Use it: {use}")
