"""``calibri calibrate``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from calibri.cli.display import loading, out, say, verbatim
from calibri.cli.options import (
    DATA,
    MACHINE,
    RUN,
    SAMPLING,
    SEARCH,
    BranchesName,
    DtypeName,
    GranularityName,
    LogOption,
    MachineOption,
    WorkersOption,
    workers_of,
)
from calibri.cli.outcome import run_with_progress
from calibri.cli.paths import RUNS, calibration_source
from calibri.cli.quiet import quiet_libraries

if TYPE_CHECKING:
    from calibri.config import RunConfig
    from calibri.progress import Progress
    from calibri.results import RunSummary


_Pipeline = Annotated[
    str | None,
    typer.Argument(
        metavar="PIPELINE",
        help="'shapes' (shipped, the default), a diffusers folder, or a Hugging Face repository.",
        show_default=False,
    ),
]
_Reward = Annotated[
    list[str] | None,
    typer.Option(
        "--reward",
        metavar="NAME",
        help="Reward to maximise, or ./PATH.py:NAME of your own; repeat it for rewards that only "
        "watch.",
        rich_help_panel=DATA,
    ),
]
_Prompts = Annotated[
    str | None,
    typer.Option(
        "--prompts",
        metavar="FILE",
        help="Prompts to search on (.txt, .json, .jsonl, .csv).",
        rich_help_panel=DATA,
    ),
]
_HeldOutPrompts = Annotated[
    str | None,
    typer.Option(
        "--held-out-prompts",
        metavar="FILE",
        help="Prompts to judge on; default: a fifth of --prompts.",
        rich_help_panel=DATA,
    ),
]
_Granularity = Annotated[
    GranularityName | None,
    typer.Option(
        "--granularity", help="What shares a scalar; default gate.", rich_help_panel=SEARCH
    ),
]
_Branches = Annotated[
    BranchesName | None,
    typer.Option(
        "--branches",
        help="Under guidance: one set of scalars, or one per branch.",
        rich_help_panel=SEARCH,
    ),
]
_Start = Annotated[
    str | None,
    typer.Option(
        "--start",
        metavar="NAME",
        help="Start from a finished run, another calibration (a folder or a repository) or a known "
        "guidance.",
        rich_help_panel=SEARCH,
    ),
]
_Generations = Annotated[
    int | None, typer.Option("--generations", help="Budget.", rich_help_panel=SEARCH)
]
_Steps = Annotated[
    int | None,
    typer.Option("--steps", help="Steps per image, as you will serve.", rich_help_panel=SAMPLING),
]
_GuidanceScale = Annotated[
    float | None,
    typer.Option("--guidance-scale", help="As you will serve.", rich_help_panel=SAMPLING),
]
_Name = Annotated[
    str | None,
    typer.Option("--name", help="Name of the run; default: the time.", rich_help_panel=RUN),
]
_Runs = Annotated[
    Path,
    typer.Option("--runs", metavar="DIR", help="Where runs are kept.", rich_help_panel=RUN),
]
_Seed = Annotated[
    int | None,
    typer.Option("--seed", help="Decides every random draw.", rich_help_panel=RUN),
]
_ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="YAML; flags win over it.", rich_help_panel=RUN),
]
_Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Any setting, such as search.sigma0=0.1; wins over flags. Repeatable.",
        rich_help_panel=RUN,
    ),
]
_DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Show what would run, and stop there.", rich_help_panel=RUN),
]
_Dtype = Annotated[
    DtypeName | None,
    typer.Option("--dtype", help="Precision of the weights.", rich_help_panel=MACHINE),
]


def calibrate(
    pipeline: _Pipeline = None,
    reward: _Reward = None,
    prompts: _Prompts = None,
    held_out_prompts: _HeldOutPrompts = None,
    granularity: _Granularity = None,
    branches: _Branches = None,
    start: _Start = None,
    generations: _Generations = None,
    steps: _Steps = None,
    guidance_scale: _GuidanceScale = None,
    name: _Name = None,
    runs: _Runs = RUNS,
    seed: _Seed = None,
    config_file: _ConfigFile = None,
    overrides: _Overrides = None,
    log: LogOption = None,
    dry_run: _DryRun = False,
    device: MachineOption = None,
    dtype: _Dtype = None,
    workers: WorkersOption = None,
) -> None:
    """Search the scalars of a pipeline, judge them on held-out prompts and save them.

    Without arguments it calibrates the shipped pipeline, in under 2 minutes on two cores. Ctrl-C
    stops at any moment and loses nothing: [bold]calibri resume[/bold] goes on.

        calibri calibrate
        calibri calibrate --dry-run
        calibri calibrate --steps 4 --set search.popsize=24 --name four-steps
        calibri calibrate --guidance-scale 3 --branches separate
    """
    flags = {
        "pipeline": pipeline,
        "device": device,
        "dtype": dtype,
        "seed": seed,
        "sampling.num_inference_steps": steps,
        "sampling.guidance_scale": guidance_scale,
        "sampling.workers": workers_of(workers),
        "space.granularity": granularity,
        "space.branches": branches,
        "space.start": calibration_source(start) if start else None,
        "rewards.objective": reward[0] if reward else None,
        "rewards.held_out": reward[1:] if reward and len(reward) > 1 else None,
        "prompts.train": prompts,
        "prompts.held_out": held_out_prompts,
        "search.generations": generations,
    }
    config = _checked_config(config_file, overrides or [], flags, name)
    if dry_run:
        _show_plan(config)
    else:
        _run(config, name, runs, log)


def _checked_config(
    file: Path | None, overrides: list[str], flags: dict[str, Any], name: str | None
) -> RunConfig:
    """Read the configuration and refuse what is wrong with it or with the name of the run."""
    with loading("Starting"):
        from calibri.config import load_config
        from calibri.configure import with_own_material
        from calibri.pipelines import place_of
        from calibri.runs import check_run_name

        config = load_config(file, overrides, flags)
        place_of(config.pipeline)  # a folder that is missing is said before what else is
        config = with_own_material(config)
        if name is not None:
            check_run_name(name)
        quiet_libraries()
    return config


def _run(config: RunConfig, name: str | None, runs: Path, log: Sequence[str] | None) -> None:
    from calibri.runs import reserved_run

    if name is not None:
        return _run_named(config, name, runs, log)
    with reserved_run(runs) as path:
        return _run_named(config, path.name, runs, log)


def _run_named(config: RunConfig, name: str, runs: Path, log: Sequence[str] | None) -> None:
    from calibri import calibrate as calibrate_pipeline

    def work(progress: Progress) -> RunSummary:
        return calibrate_pipeline(config, name=name, runs=runs, progress=progress, callbacks=log)

    run_with_progress(runs / name, config, work)


def _show_plan(config: RunConfig) -> None:
    import yaml

    from calibri.pipelines import networks_of
    from calibri.runs import Session, check_search, planned_images

    with loading(f"Loading {config.pipeline}"):
        session = Session(config)
    check_search(session)
    console = out()
    resolved = session.config.model_dump(mode="json")
    text = yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True)
    verbatim(console, text)
    planned = planned_images(session)
    facts = {
        "transformer": type(networks_of(session.bench.pipe)[0].transformer).__name__,
        "sites": f"{len(session.bench.scaler.sites)} and the output",
        "parameters": f"{session.space.size}",
        "popsize": f"{config.search.population(session.space.size)}",
        "images": ", ".join(f"{count:,} {phase}" for phase, count in planned.items()),
        "": f"{sum(planned.values()):,} at most",
    }
    for label, fact in facts.items():
        verbatim(console, f"{label:<12} {fact}")
    say(console, "\nNothing was started. Leave out --dry-run to run it.")
