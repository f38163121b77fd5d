"""``calibri experiment``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from calibri.cli.display import (
    difference,
    loading,
    out,
    printable,
    say,
    show_rows,
    unsigned,
    verbatim,
)
from calibri.cli.options import RUN, JsonOption, MachineOption, WorkersOption
from calibri.cli.paths import run_path
from calibri.cli.progress import watching
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
    OverridesOption,
    PromptsOption,
    RewardOption,
    SeedOption,
    StepsOption,
    run_flags,
)
from calibri.cli.tally import Tally
from calibri.results import Figure

if TYPE_CHECKING:
    from calibri.config import RunConfig
    from calibri.reporting import Cell, Findings, Table

_Name = Annotated[str, typer.Argument(metavar="NAME", help="One of those below.")]
_Pipelines = Annotated[
    list[str] | None,
    typer.Option(
        "--pipeline",
        metavar="PIPELINE",
        help="Default: the shipped one, 'shapes'. For backbones, repeat it.",
    ),
]
_Run = Annotated[
    Path | None,
    typer.Option(
        "--run",
        metavar="RUN",
        help="A finished run, or its name under runs/, for convergence and cost.",
        rich_help_panel=RUN,
    ),
]
_Searches = Annotated[
    int | None,
    typer.Option(
        "--searches",
        metavar="N",
        min=1,
        help="Of each kind, with the seed and those after it; default 3.",
        rich_help_panel=RUN,
    ),
]
_Output = Annotated[
    Path | None,
    typer.Option(
        "--output",
        metavar="DIR",
        help="Default: experiments/NAME-DIGEST, a folder for each setting.",
        rich_help_panel=RUN,
    ),
]


def experiment(
    name: _Name,
    pipeline: _Pipelines = None,
    lora: LoraOption = None,
    reward: RewardOption = None,
    prompts: PromptsOption = None,
    held_out_prompts: HeldOutPromptsOption = None,
    granularity: GranularityOption = None,
    branches: BranchesOption = None,
    steps: StepsOption = None,
    guidance_scale: GuidanceScaleOption = None,
    generations: GenerationsOption = None,
    searches: _Searches = None,
    run: _Run = None,
    output: _Output = None,
    seed: SeedOption = None,
    config_file: ConfigFileOption = None,
    overrides: OverridesOption = None,
    device: MachineOption = None,
    dtype: DtypeOption = None,
    workers: WorkersOption = None,
    as_json: JsonOption = False,
) -> None:
    """Repeat an experiment of the paper on a pipeline: a table, a figure and a page.

    [bold]ablation[/bold] bypasses each block, [bold]sweep[/bold] finds the best scale of each.
    [bold]granularity[/bold], [bold]optimisers[/bold] and [bold]trajectory[/bold] search in several
    ways at equal cost; [bold]steps[/bold], [bold]ensemble[/bold], [bold]backbones[/bold],
    [bold]alignment[/bold], [bold]rewards[/bold] and [bold]diversity[/bold] calibrate and compare.
    [bold]convergence[/bold] and [bold]cost[/bold] look at a finished run. The same command goes on
    where it was stopped.

        calibri experiment ablation
        calibri experiment granularity --searches 5 --generations 20
        calibri experiment sweep --granularity gate --set evaluation.num_prompts=32
        calibri experiment convergence --run runs/20260131-120000
    """
    from calibri.experiments import check_experiment

    check_experiment(name, with_run=run is not None, searches=searches)
    flags = run_flags(
        reward,
        None,
        workers,
        pipeline=pipeline[0] if pipeline else None,
        lora=lora,
        prompts=prompts,
        held_out_prompts=held_out_prompts,
        generations=generations,
        granularity=granularity,
        branches=branches,
        steps=steps,
        guidance_scale=guidance_scale,
        seed=seed,
        device=device,
        dtype=dtype,
    )
    config = _config(config_file, overrides or [], flags, pipeline or ())
    findings = _found(name, config, pipeline or [config.pipeline], run, searches, output)
    if as_json:
        typer.echo(findings.model_dump_json(indent=2))
    else:
        _show(findings)


def _config(
    file: Path | None, overrides: list[str], flags: dict[str, Any], pipelines: Sequence[str]
) -> RunConfig:
    with loading("Starting"):
        from calibri.config import load_config
        from calibri.pipelines import place_of

        config = load_config(file, overrides, flags)
        for pipeline in pipelines or [config.pipeline]:
            place_of(pipeline)  # before torch is imported
    return config


def _found(
    name: str,
    config: RunConfig,
    pipelines: Sequence[str],
    run: Path | None,
    searches: int | None,
    output: Path | None,
) -> Findings:
    with loading("Starting"):
        from calibri import experiment as repeat_experiment

        quiet_libraries()
    with watching(Tally(), loading=f"Loading {config.pipeline}") as progress:
        return repeat_experiment(
            name=name,
            config=config,
            pipeline=list(pipelines),
            run=None if run is None else run_path(run),
            searches=searches,
            output=output,
            progress=progress,
        )


def _show(findings: Findings) -> None:
    console = out()
    say(console, Text(findings.verdict, style="bold"))
    for table in findings.tables:
        console.print()
        say(console, Text(table.title, style="bold"))
        show_rows(console, [_row(table, row) for row in table.rows])
    console.print()
    say(console, f"The paper, {findings.paper}: {findings.claim}. Here: {findings.answer}.")
    verbatim(console, f"page    {Path(findings.folder) / 'report.html'}")


def _row(table: Table, row: Sequence[Cell]) -> tuple[Text, dict[str, Text]]:
    cells = {
        column: _cell(value, is_difference=column in table.signed)
        for column, value in zip(table.columns[1:], row[1:], strict=True)
    }
    return Text(printable(str(row[0]))), cells


def _cell(value: Cell, *, is_difference: bool) -> Text:
    if not isinstance(value, Figure):
        return Text(f"{value:.4f}" if isinstance(value, float) else printable(str(value)))
    return difference(value) if is_difference else Text(unsigned(value))
