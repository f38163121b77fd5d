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
    GranularityOption,
    GuidanceScaleOption,
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

_Name = Annotated[str, typer.Argument(metavar="NAME", help="ablation, sweep, convergence or cost.")]
_Pipeline = Annotated[
    str | None,
    typer.Option("--pipeline", metavar="PIPELINE", help="Default: the shipped one, 'shapes'."),
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
    pipeline: _Pipeline = None,
    reward: RewardOption = None,
    prompts: PromptsOption = None,
    granularity: GranularityOption = None,
    branches: BranchesOption = None,
    steps: StepsOption = None,
    guidance_scale: GuidanceScaleOption = None,
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

    [bold]ablation[/bold] bypasses each block, [bold]sweep[/bold] finds the best scale of each,
    [bold]convergence[/bold] and [bold]cost[/bold] look at a finished run. The same command goes on
    where it was stopped.

        calibri experiment ablation
        calibri experiment sweep --granularity gate --set evaluation.num_prompts=32
        calibri experiment convergence --run runs/20260131-120000
    """
    from calibri.experiments import check_experiment

    check_experiment(name, with_run=run is not None)
    flags = run_flags(
        reward,
        None,
        workers,
        pipeline=pipeline,
        prompts=prompts,
        granularity=granularity,
        branches=branches,
        steps=steps,
        guidance_scale=guidance_scale,
        seed=seed,
        device=device,
        dtype=dtype,
    )
    findings = _found(name, _config(config_file, overrides or [], flags), run, output)
    if as_json:
        typer.echo(findings.model_dump_json(indent=2))
    else:
        _show(findings)


def _config(file: Path | None, overrides: list[str], flags: dict[str, Any]) -> RunConfig:
    with loading("Starting"):
        from calibri.config import load_config
        from calibri.pipelines import place_of

        config = load_config(file, overrides, flags)
        place_of(config.pipeline)  # before torch is imported
    return config


def _found(name: str, config: RunConfig, run: Path | None, output: Path | None) -> Findings:
    with loading("Starting"):
        from calibri import experiment as repeat_experiment

        quiet_libraries()
    with watching(Tally(), loading=f"Loading {config.pipeline}") as progress:
        return repeat_experiment(
            name=name,
            config=config,
            run=None if run is None else run_path(run),
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
