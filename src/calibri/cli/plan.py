"""``calibri plan``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.table import Table
from rich.text import Text

from calibri.cli.display import byte_words, flop_words, loading, out, printable, say
from calibri.cli.options import MACHINE, JsonOption, LogOption, MachineOption, WorkersOption
from calibri.cli.paths import RUNS, check_pipeline
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
    from calibri import Plan
    from calibri.planning import GradientMemory, Hours, Procedure

_Row = tuple[str, list[str]]

_UNITS = (("days", 24.0), ("hours", 1.0), ("minutes", 1 / 60), ("seconds", 1 / 3600))
_USABLE = 0.9  # of a GPU's memory; activations and the driver take the rest

_PIPELINE = (
    "flux.1-dev, sd3.5-medium or qwen-image (known here), 'shapes' (shipped, the default), a "
    "diffusers folder, or a repository, of which only configuration files are read."
)


_Pipeline = Annotated[
    str | None, typer.Argument(metavar="PIPELINE", help=_PIPELINE, show_default=False)
]
_DryRun = Annotated[bool, typer.Option("--dry-run", help="A plan starts nothing.", hidden=True)]
_Machine = Annotated[
    Literal["h100", "h200", "a100", "4090"] | None,
    typer.Option("--machine", help="Published throughput.", rich_help_panel=MACHINE),
]
_Tflops = Annotated[
    float | None,
    typer.Option("--tflops", help="Throughput you measured.", rich_help_panel=MACHINE),
]
_Measured = Annotated[
    bool,
    typer.Option("--measure", help="Time a few batches here.", rich_help_panel=MACHINE),
]


def plan(
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
    machine: _Machine = None,
    tflops: _Tflops = None,
    measured: _Measured = False,
    device: MachineOption = None,
    dtype: DtypeOption = None,
    workers: WorkersOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what a run will cost: images, FLOPs, hours and memory, before any of it is spent.

    Takes what [bold]calibri calibrate[/bold] takes. No weights are read or downloaded, except to
    --measure. Under the names flux.1-dev, sd3.5-medium and qwen-image what is left open is as in
    the paper.

        calibri plan flux.1-dev
        calibri plan sd3.5-medium --machine a100 --set search.generations=40
        calibri plan --measure
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
    with loading("Counting"):
        from calibri.config import load_config
        from calibri.runs import check_run_name

        config = load_config(config_file, overrides or [], flags)
        check_pipeline(config.pipeline, known_here=True)
        if name is not None:
            check_run_name(name)
        from calibri import plan as plan_run

        quiet_libraries()
        planned = plan_run(config, machine=machine, tflops=tflops, measured=measured)
    if as_json:
        typer.echo(planned.model_dump_json(indent=2))
    else:
        _show(planned)


def _show(planned: Plan) -> None:
    console = out()
    size = f"{planned.height} x {planned.width} pixels"
    title = f"{planned.pipeline}: {planned.transformer_class}, {size}"
    say(console, Text(printable(title), style="bold"))
    say(
        console,
        f"{planned.parameters} numbers are searched (granularity {planned.granularity}). An image "
        f"takes {planned.nfe} evaluations of the transformer, "
        f"{flop_words(planned.forward_teraflop)} each, and {_image_words(planned)}.",
    )
    console.print()
    console.print(_table(planned))
    console.print()
    for line in memory_lines(planned):
        say(console, line)
    if not any(procedure.hours for procedure in planned.procedures):
        say(console, "How long that takes here: calibri plan --measure.")
    for note in planned.notes:
        say(console, Text(printable(note), style="dim"))


def _image_words(planned: Plan) -> str:
    total = sum(planned.image_teraflop.values())
    parts = ", ".join(
        f"{part} {_percent(tera / total)}" for part, tera in planned.image_teraflop.items() if tera
    )
    return f"{flop_words(total)} in all ({parts})"


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.01 else "under 1%"


def _table(planned: Plan) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    table.add_column("")
    for procedure in planned.procedures:
        table.add_column(procedure.title, justify="right")
    for label, cells in _rows(planned):
        table.add_row(Text(label), *map(Text, cells))
    return table


def _rows(planned: Plan) -> list[_Row]:
    both = planned.procedures
    rows: list[_Row] = [
        ("generations", [f"{p.generations:,}" for p in both]),
        ("candidates x prompts", [_candidates(p) for p in both]),
    ]
    for phase in dict.fromkeys(phase for p in both for phase in p.images):
        rows.append((f"images, {phase}", [_count(p, phase) for p in both]))
    rows.append(("images, all", [f"{sum(p.images.values()):,}" for p in both]))
    rows.append(("operations, all", [flop_words(1e3 * sum(p.petaflop.values())) for p in both]))
    for times in zip(*(p.hours for p in both), strict=True):
        rows.append((_speed(times[0], planned.machine), [_hours(hours) for hours in times]))
    if any(p.published_hours for p in both):
        published = [p.published_hours for p in both]
        cells = [f"{h:g} hours" if h else "-" for h in published]
        rows.append(("time on an H100, as published", cells))
    return rows


def _candidates(procedure: Procedure) -> str:
    popsize = f"{procedure.popsize}"
    if procedure.updates:
        popsize = f"({procedure.updates} updates by gradients + the original)"
    elif procedure.with_original:
        popsize = f"({popsize} + the original)"
    first, last = procedure.bucket_size, procedure.final_bucket_size
    prompts = f"{first}" if first == last else f"{first} to {last}"
    return f"{popsize} x {prompts}"


def _count(procedure: Procedure, phase: str) -> str:
    return f"{procedure.images[phase]:,}" if phase in procedure.images else "-"


def _speed(hours: Hours, machine: str | None) -> str:
    speed = hours.speed
    low, high = (f"{x:.3g}" for x in (speed.low, speed.high))
    rate = f"{low} TFLOP/s" if low == high else f"{low} to {high} TFLOP/s"
    place = f" on an {machine}" if machine and speed.label in ("eager", "compiled") else ""
    return f"time{place}, {speed.label} ({rate})"


def _hours(hours: Hours) -> str:
    unit, length = next((u, n) for u, n in _UNITS if hours.high >= 2 * n or u == "seconds")
    low, high = (_short(x / length) for x in (hours.low, hours.high))
    return f"{high} {unit}" if low == high else f"{low} to {high} {unit}"


def _short(number: float) -> str:
    return f"{number:.2g}" if number < 10 else f"{number:.0f}"


def memory_lines(planned: Plan) -> list[str]:
    """Say what the weights take, and on a known machine whether they fit."""
    largest = sorted(planned.components, key=lambda component: -component.gigabytes)
    parts = ", ".join(f"{c.name} {byte_words(c.gigabytes)}" for c in largest)
    everything = byte_words(planned.resident_gigabytes)
    alternating = byte_words(planned.in_turns_gigabytes)
    lines = [f"The weights take {everything} ({parts})."]
    if alternating != everything:
        lines.append(f"With rewards.offload pipeline and rewards take turns: {alternating}.")
    if kept := planned.gradient:
        lines.append(
            f"An image with its gradient keeps {byte_words(kept.all_steps)} of activations beside "
            f"them; where that does not fit, {byte_words(kept.one_step)} with one step at a time "
            f"(a third more time), or {byte_words(kept.one_block)} with one block at a time (two "
            "thirds more). The network of a reward needs its own on top."
        )
    if planned.machine and planned.machine_gigabytes:
        lines.append(f"{planned.machine} with {planned.machine_gigabytes} GB: {_fits(planned)}.")
    return lines


def _fits(planned: Plan) -> str:
    room = _USABLE * (planned.machine_gigabytes or 0)
    if kept := planned.gradient:
        return _gradient_fits(planned, room, kept)
    if planned.resident_gigabytes < room:
        return "everything fits"
    if planned.in_turns_gigabytes < room:
        return "pipeline and rewards fit in turns (rewards.offload)"
    offloaded = planned.offloaded_gigabytes < room
    return "one network at a time fits" if offloaded else "not even the largest network fits"


def _gradient_fits(planned: Plan, room: float, kept: GradientMemory) -> str:
    """Say what fits beside all networks, or beside the larger of pipeline and rewards in turns."""
    turns = ", pipeline and rewards in turns (rewards.offload)"
    for weights, how in (planned.resident_gigabytes, ""), (planned.in_turns_gigabytes, turns):
        if weights + kept.all_steps < room:
            return f"a gradient fits with everything that it keeps{how}"
        if weights + kept.one_step < room:
            return f"a gradient fits with one step at a time{how}"
        if weights + kept.one_block < room:
            return f"a gradient fits with one block at a time{how}"
    return "a gradient does not fit"
