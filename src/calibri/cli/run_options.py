"""The options of a run: ``calibri calibrate`` takes them, and ``calibri plan`` counts that run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from calibri.cli.options import (
    DATA,
    MACHINE,
    RUN,
    SAMPLING,
    SEARCH,
    BranchesName,
    DtypeName,
    GranularityName,
    workers_of,
)
from calibri.cli.paths import calibration_source

RewardOption = Annotated[
    list[str] | None,
    typer.Option(
        "--reward",
        metavar="NAME",
        help="Reward to maximise, or ./PATH.py:NAME of your own; repeat it for rewards that only "
        "watch.",
        rich_help_panel=DATA,
    ),
]
PromptsOption = Annotated[
    str | None,
    typer.Option(
        "--prompts",
        metavar="FILE",
        help="Prompts to search on (.txt, .json, .jsonl, .csv).",
        rich_help_panel=DATA,
    ),
]
HeldOutPromptsOption = Annotated[
    str | None,
    typer.Option(
        "--held-out-prompts",
        metavar="FILE",
        help="Prompts to judge on; default: a fifth of --prompts.",
        rich_help_panel=DATA,
    ),
]
LoraOption = Annotated[
    str | None,
    typer.Option(
        "--lora",
        metavar="LORA",
        help="Calibrate on top of a LoRA: a folder or file of PEFT or diffusers, or a repository.",
    ),
]
GranularityOption = Annotated[
    GranularityName | None,
    typer.Option(
        "--granularity", help="What shares a scalar; default gate.", rich_help_panel=SEARCH
    ),
]
BranchesOption = Annotated[
    BranchesName | None,
    typer.Option(
        "--branches",
        help="Under guidance: one set of scalars, or one per branch.",
        rich_help_panel=SEARCH,
    ),
]
StartOption = Annotated[
    str | None,
    typer.Option(
        "--start",
        metavar="NAME",
        help="Start from a finished run, another calibration (a folder or a repository) or a known "
        "guidance.",
        rich_help_panel=SEARCH,
    ),
]
GenerationsOption = Annotated[
    int | None, typer.Option("--generations", help="Budget.", rich_help_panel=SEARCH)
]
StepsOption = Annotated[
    int | None,
    typer.Option("--steps", help="Steps per image, as you will serve.", rich_help_panel=SAMPLING),
]
GuidanceScaleOption = Annotated[
    float | None,
    typer.Option("--guidance-scale", help="As you will serve.", rich_help_panel=SAMPLING),
]
NameOption = Annotated[
    str | None,
    typer.Option("--name", help="Name of the run; default: the time.", rich_help_panel=RUN),
]
RunsOption = Annotated[
    Path,
    typer.Option("--runs", metavar="DIR", help="Where runs are kept.", rich_help_panel=RUN),
]
SeedOption = Annotated[
    int | None,
    typer.Option("--seed", help="Decides every random draw.", rich_help_panel=RUN),
]
ConfigFileOption = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="YAML; flags win over it.", rich_help_panel=RUN),
]
OverridesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Any setting, such as search.sigma0=0.1; wins over flags. Repeatable.",
        rich_help_panel=RUN,
    ),
]
DtypeOption = Annotated[
    DtypeName | None,
    typer.Option("--dtype", help="Precision of the weights.", rich_help_panel=MACHINE),
]

# What a command calls an option, and the key of the configuration that it sets.
_KEYS = {
    "pipeline": "pipeline",
    "lora": "lora",
    "device": "device",
    "dtype": "dtype",
    "seed": "seed",
    "steps": "sampling.num_inference_steps",
    "guidance_scale": "sampling.guidance_scale",
    "granularity": "space.granularity",
    "branches": "space.branches",
    "prompts": "prompts.train",
    "held_out_prompts": "prompts.held_out",
    "generations": "search.generations",
}


def run_flags(
    reward: list[str] | None, start: str | None, workers: str | None, **options: Any
) -> dict[str, Any]:
    """Turn options into keys of a configuration; what was not given is None.

    Args:
        reward: the objective, then rewards that only watch.
        start: see ``StartOption``.
        workers: see ``WorkersOption``.
        options: the others, by the names of the command's parameters.

    Raises:
        RunError: the run to start from is not finished.
    """
    return {
        **{_KEYS[name]: value for name, value in options.items()},
        "sampling.workers": workers_of(workers),
        "rewards.objective": reward[0] if reward else None,
        "rewards.held_out": reward[1:] if reward and len(reward) > 1 else None,
        "space.start": calibration_source(start) if start else None,
    }
