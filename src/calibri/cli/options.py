"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

# The same choices as ``calibri.config``, spelled here for a quick start.
GranularityName = Literal["block", "layer", "gate"]
BranchesName = Literal["shared", "separate"]
DtypeName = Literal["float32", "bfloat16", "float16"]

SEARCH = "Search"
SAMPLING = "Sampling"
DATA = "Prompts and rewards"
RUN = "Run"
MACHINE = "Machine"

_CALIBRATION_HELP = "A calibration folder, a finished run, or a Hugging Face repository."

CalibrationArgument = Annotated[str, typer.Argument(metavar="CALIBRATION", help=_CALIBRATION_HELP)]
RunArgument = Annotated[
    Path, typer.Argument(metavar="RUN", help="Folder of a run, or its name under runs/.")
]
PipelineOption = Annotated[
    str | None,
    typer.Option(
        "--pipeline",
        metavar="PIPELINE",
        help="Another pipeline than the one it was made for; same kind of transformer.",
    ),
]
LoraOption = Annotated[
    str | None,
    typer.Option(
        "--lora",
        metavar="LORA",
        help="A LoRA for the pipeline: a folder or file of PEFT or diffusers, or a repository. "
        "Default: that of the calibration, if any.",
    ),
]
StrengthOption = Annotated[
    float, typer.Option("--strength", help="From 0, the original model, to 1, all of it.")
]
StepsOption = Annotated[
    int | None,
    typer.Option(
        "--steps",
        min=1,
        help="Steps per image; default: as calibrated.",
        rich_help_panel=SAMPLING,
    ),
]
GuidanceOption = Annotated[
    float | None,
    typer.Option(
        "--guidance-scale", help="Guidance; default: as calibrated.", rich_help_panel=SAMPLING
    ),
]
_DEVICE: Any = typer.Option(
    "--device", help="auto, cpu, cuda, cuda:1 or mps.", rich_help_panel=MACHINE
)
DeviceOption = Annotated[str, _DEVICE]
MachineOption = Annotated[str | None, _DEVICE]
WorkersOption = Annotated[
    str | None,
    typer.Option(
        "--workers",
        metavar="N|ray",
        help="Processes that sample: one GPU each, or a share of the cores; 'ray' for those of a "
        "Ray cluster. Default: one on a GPU, and on a CPU as many as pay off.",
        rich_help_panel=MACHINE,
    ),
]
DtypeOption = Annotated[
    DtypeName,
    typer.Option("--dtype", help="Precision of the weights.", rich_help_panel=MACHINE),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
LogOption = Annotated[
    list[str] | None,
    typer.Option(
        "--log",
        metavar="NAME",
        help="Log to tensorboard, wandb or trackio, too. Repeatable.",
        rich_help_panel=RUN,
    ),
]


def workers_of(text: str | None) -> Any:
    """Read ``--workers``; whether it is a number or ``ray`` is for the configuration to say."""
    return int(text) if text and text.isdecimal() else text
