"""``calibri calibrate``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from calibri.cli.display import loading, out, say, verbatim
from calibri.cli.options import RUN, LogOption, MachineOption, WorkersOption
from calibri.cli.outcome import run_with_progress
from calibri.cli.paths import RUNS
from calibri.cli.quiet import quiet_libraries
from calibri.cli.run_options import (
    BranchesOption,
    ConfigFileOption,
    DtypeOption,
    GenerationsOption,
    GranularityOption,
    GuidanceScaleOption,
    HeldOutPromptsOption,
    LoraOption,
    NameOption,
    OverridesOption,
    PromptsOption,
    RewardOption,
    RunsOption,
    SeedOption,
    StartOption,
    StepsOption,
    run_flags,
)

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
_DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Show what would run, and stop there.", rich_help_panel=RUN),
]


def calibrate(
    pipeline: _Pipeline = None,
    lora: LoraOption = None,
    reward: RewardOption = None,
    prompts: PromptsOption = None,
    held_out_prompts: HeldOutPromptsOption = None,
    granularity: GranularityOption = None,
    branches: BranchesOption = None,
    start: StartOption = None,
    generations: GenerationsOption = None,
    steps: StepsOption = None,
    guidance_scale: GuidanceScaleOption = None,
    name: NameOption = None,
    runs: RunsOption = RUNS,
    seed: SeedOption = None,
    config_file: ConfigFileOption = None,
    overrides: OverridesOption = None,
    log: LogOption = None,
    dry_run: _DryRun = False,
    device: MachineOption = None,
    dtype: DtypeOption = None,
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
    flags = run_flags(
        reward,
        start,
        workers,
        pipeline=pipeline,
        lora=lora,
        prompts=prompts,
        held_out_prompts=held_out_prompts,
        granularity=granularity,
        branches=branches,
        generations=generations,
        steps=steps,
        guidance_scale=guidance_scale,
        seed=seed,
        device=device,
        dtype=dtype,
    )
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
