"""``calibri plan``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.table import Table
from rich.text import Text

from calibri.cli.display import flop_words, loading, out, printable, say
from calibri.cli.options import (
    MACHINE,
    RUN,
    SAMPLING,
    SEARCH,
    BranchesName,
    GranularityName,
    JsonOption,
)
from calibri.cli.quiet import quiet_libraries

if TYPE_CHECKING:
    from calibri import Plan
    from calibri.planning import GradientMemory, Hours, Procedure

_Row = tuple[str, list[str]]

_USABLE = 0.9  # of a GPU's memory; activations and the driver take the rest

_PIPELINE = (
    "flux.1-dev, sd3.5-medium or qwen-image (known here), 'shapes' (shipped, the default), a "
    "diffusers folder, or a repository, of which only configuration files are read."
)


_Pipeline = Annotated[
    str | None, typer.Argument(metavar="PIPELINE", help=_PIPELINE, show_default=False)
]
_Reward = Annotated[
    str | None, typer.Option("--reward", metavar="NAME", help="Reward to maximise.")
]
_Granularity = Annotated[
    GranularityName | None,
    typer.Option("--granularity", help="What shares a scalar.", rich_help_panel=SEARCH),
]
_Branches = Annotated[
    BranchesName | None,
    typer.Option("--branches", help="Scalars per branch.", rich_help_panel=SEARCH),
]
_Generations = Annotated[
    int | None, typer.Option("--generations", help="Budget.", rich_help_panel=SEARCH)
]
_Steps = Annotated[
    int | None, typer.Option("--steps", help="Steps per image.", rich_help_panel=SAMPLING)
]
_GuidanceScale = Annotated[
    float | None,
    typer.Option("--guidance-scale", help="As you will serve.", rich_help_panel=SAMPLING),
]
_ConfigFile = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="YAML.", rich_help_panel=RUN)
]
_Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any setting.", rich_help_panel=RUN),
]
_Machine = Annotated[
    Literal["h100", "h200", "a100", "4090"] | None,
    typer.Option("--machine", help="Published throughput.", rich_help_panel=MACHINE),
]
_Tflops = Annotated[
    float | None,
    typer.Option("--tflops", help="Throughput you measured.", rich_help_panel=MACHINE),
]
_Device = Annotated[
    str | None,
    typer.Option("--device", help="Where --measure runs.", rich_help_panel=MACHINE),
]
_Measured = Annotated[
    bool,
    typer.Option("--measure", help="Time a few batches here.", rich_help_panel=MACHINE),
]


def plan(
    pipeline: _Pipeline = None,
    reward: _Reward = None,
    granularity: _Granularity = None,
    branches: _Branches = None,
    generations: _Generations = None,
    steps: _Steps = None,
    guidance_scale: _GuidanceScale = None,
    config_file: _ConfigFile = None,
    overrides: _Overrides = None,
    machine: _Machine = None,
    tflops: _Tflops = None,
    measured: _Measured = False,
    device: _Device = None,
    as_json: JsonOption = False,
) -> None:
    """Say what a run will cost: images, FLOPs, hours and memory, before any of it is spent.

    Takes what [bold]calibri calibrate[/bold] takes. No weights are read or downloaded, except to
    --measure; what a configuration leaves open is, for a model of the paper, as in the paper.

        calibri plan flux.1-dev
        calibri plan sd3.5-medium --machine a100 --set search.generations=40
        calibri plan --measure
    """
    flags = {
        "pipeline": pipeline,
        "device": device,
        "rewards.objective": reward,
        "space.granularity": granularity,
        "space.branches": branches,
        "search.generations": generations,
        "sampling.num_inference_steps": steps,
        "sampling.guidance_scale": guidance_scale,
    }
    with loading("Counting"):
        from calibri import plan as plan_run
        from calibri.config import load_config

        quiet_libraries()
        config = load_config(config_file, overrides or [], flags)
        planned = plan_run(config, machine=machine, tflops=tflops, measured=measured)
    if as_json:
        typer.echo(planned.model_dump_json(indent=2))
    else:
        _show(planned)


def _show(planned: Plan) -> None:
    console = out()
    parts = ", ".join(f"{part} {flop_words(tera)}" for part, tera in planned.image_teraflop.items())
    per_image = flop_words(sum(planned.image_teraflop.values()))
    title = f"{planned.pipeline}: {planned.transformer_class}, {planned.height} x {planned.width}"
    say(console, Text(printable(title), style="bold"))
    say(
        console,
        f"{planned.parameters} numbers are searched (granularity {planned.granularity}). An image "
        f"takes {planned.nfe} evaluations of the transformer of "
        f"{flop_words(planned.forward_teraflop)} each, in all {per_image} ({parts}).",
    )
    console.print()
    console.print(_table(planned))
    console.print()
    for line in memory_lines(planned):
        say(console, line)
    for note in planned.notes:
        say(console, Text(printable(note), style="dim"))


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
    rows.append(("in all", [flop_words(1e3 * sum(p.petaflop.values())) for p in both]))
    for times in zip(*(p.hours for p in both), strict=True):
        rows.append((_speed(times[0], planned.machine), [_hours(hours) for hours in times]))
    if any(p.published_hours for p in both):
        published = [p.published_hours for p in both]
        rows.append(("hours on an H100, as published", [f"{h:g}" if h else "-" for h in published]))
    return rows


def _candidates(procedure: Procedure) -> str:
    beside = " + the original" if procedure.with_original else ""
    first, last = procedure.bucket_size, procedure.final_bucket_size
    prompts = f"{first}" if first == last else f"{first} to {last}"
    return f"{procedure.popsize}{beside} x {prompts}"


def _count(procedure: Procedure, phase: str) -> str:
    return f"{procedure.images[phase]:,}" if phase in procedure.images else "-"


def _speed(hours: Hours, machine: str | None) -> str:
    speed = hours.speed
    low, high = (f"{x:.3g}" for x in (speed.low, speed.high))
    rate = f"{low} TFLOP/s" if low == high else f"{low} to {high} TFLOP/s"
    place = f" on an {machine}" if machine and speed.label in ("eager", "compiled") else ""
    return f"hours{place}, {speed.label} ({rate})"


def _hours(hours: Hours) -> str:
    return f"{hours.low:.2g} to {hours.high:.2g}" if hours.high < 10 else _whole(hours)


def _whole(hours: Hours) -> str:
    return f"{hours.low:.0f} to {hours.high:.0f}"


def memory_lines(planned: Plan) -> list[str]:
    """Say what the weights take, and on a known machine whether they fit."""
    parts = ", ".join(f"{c.name} {c.gigabytes:.2g}" for c in planned.components)
    everything = f"{planned.resident_gigabytes:.3g} GB with everything on the device"
    alternating = f"{planned.in_turns_gigabytes:.3g} GB when pipeline and rewards alternate"
    largest = f"{planned.offloaded_gigabytes:.3g} GB with one network at a time"
    lines = [f"Memory of the weights: {everything}, {alternating}, {largest} ({parts})."]
    if kept := planned.gradient:
        lines.append(
            f"An image with its gradient keeps {kept.all_steps:.3g} GB of activations beside them; "
            f"where that does not fit, {kept.one_step:.3g} GB with one step at a time (a third "
            f"more time), or {kept.one_block:.3g} GB with one block at a time (two thirds more). "
            "The network of a reward needs its own on top."
        )
    if planned.machine and planned.machine_gigabytes:
        lines.append(f"{_fits(planned)} on the {planned.machine_gigabytes} GB of one.")
    return lines


def _fits(planned: Plan) -> str:
    room = _USABLE * (planned.machine_gigabytes or 0)
    if kept := planned.gradient:
        return _gradient_fits(room - planned.resident_gigabytes, kept)
    if planned.resident_gigabytes < room:
        return "Everything fits"
    if planned.in_turns_gigabytes < room:
        return "Pipeline and rewards, alternating (rewards.offload), fit"
    offloaded = planned.offloaded_gigabytes < room
    return "One network at a time fits" if offloaded else "Not even the largest network fits"


def _gradient_fits(room: float, kept: GradientMemory) -> str:
    """A gradient needs all networks on the device; activations come beside them."""
    if kept.all_steps < room:
        return "A gradient fits with everything that it keeps"
    if kept.one_step < room:
        return "A gradient fits with one step at a time"
    fits = kept.one_block < room
    return "A gradient fits with one block at a time" if fits else "A gradient does not fit"
