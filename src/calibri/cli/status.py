"""``calibri status``."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from calibri.cli.display import animated, flop_words, out, printable, signed
from calibri.cli.options import JsonOption, RunArgument
from calibri.cli.paths import run_path
from calibri.cli.tally import clock_time, speed_words, trouble_words

if TYPE_CHECKING:
    from calibri import RunStatus

_EVERY = 2.0  # seconds
_STYLES = {"running": "green", "finished": "bold green", "stopped": "yellow", "silent": "red"}

_Watch = Annotated[
    bool, typer.Option("--watch", help="Look again every two seconds, until it stops.")
]


def status(run: RunArgument, watch: _Watch = False, as_json: JsonOption = False) -> None:
    """Show where a run stands: generations, gain, speed, time left, cost so far.

    Only its configuration and journal are read, so it may be running, here or on another machine
    that shares the folder, stopped or finished.

        calibri status runs/20260131-120000
        calibri status 20260131-120000 --watch
    """
    path, console = run_path(run), out()
    if not watch:
        _print(console, _read(path), as_json=as_json)
    elif as_json or not animated(console):
        for found in _changes(path):
            _print(console, found, as_json=as_json)
    else:
        _redraw(console, path)


def _read(path: Path) -> RunStatus:
    from calibri import status as read_status

    return read_status(path)


def _changes(path: Path) -> Iterator[RunStatus]:
    """Look again and again, and give what is new, until nobody works on the run."""
    before = None
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            found = _read(path)
            if found != before:
                yield found
            if found.state in ("finished", "stopped"):
                return
            before = found
            time.sleep(_EVERY)


def _redraw(console: Console, path: Path) -> None:
    with Live(console=console, auto_refresh=False) as live:
        for found in _changes(path):
            live.update(_table(found), refresh=True)


def _print(console: Console, found: RunStatus, *, as_json: bool) -> None:
    if as_json:
        typer.echo(found.model_dump_json())
    else:
        console.print(_table(found))


def _table(found: RunStatus) -> RenderableType:
    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_column(width=12, style="dim")
    table.add_column(overflow="fold")
    state = Text.assemble((found.state, _STYLES[found.state]), f": {printable(found.known_by)}")
    table.add_row("run", Text(printable(f"{found.name}, {found.pipeline}")))
    table.add_row("state", state)
    for label, words in _rows(found).items():
        if words:
            table.add_row(label, Text(printable(words)))
    return table


def _rows(found: RunStatus) -> dict[str, str]:
    return {
        "generation": f"{found.generations} of {found.generations_planned}",
        "reward": _reward(found),
        "validated": _validated(found),
        "images": _images(found),
        "speed": _speed(found),
        "time left": "" if found.state == "finished" else clock_time(found.seconds_left),
        "cost so far": _cost(found),
        "trouble": trouble_words(found.failed_images, found.retries),
        "batch": f"{found.batch_size} images",
        "page": found.page or "",
    }


def _reward(found: RunStatus) -> str:
    last = found.generation
    if last is None:
        return ""
    difference = last.mean - last.baseline
    return (
        f"{found.objective} {last.mean:.3f}, original {last.baseline:.3f}: {difference:+.3f}, "
        f"sigma {last.sigma:.3f}"
    )


def _validated(found: RunStatus) -> str:
    checkpoint = found.checkpoint
    if checkpoint is None:
        return ""
    vetoed = f", vetoed by {', '.join(checkpoint.vetoed_by)}" if checkpoint.vetoed_by else ""
    gain = signed(checkpoint.difference)
    return f"{found.objective} {gain} after generation {checkpoint.generation + 1}{vetoed}"


def _images(found: RunStatus) -> str:
    done = sum(found.images.values())
    most = sum(found.images_planned.values())
    phases = ", ".join(f"{count:,} {phase}" for phase, count in found.images.items())
    return f"{done:,}" + (f" of at most {most:,}" if most else "") + (f" ({phases})" * bool(phases))


def _speed(found: RunStatus) -> str:
    if found.images_per_second is None:
        return ""
    workers = f" ({speed_words(found.workers)})" if len(found.workers) > 1 else ""
    return f"{found.images_per_second:.3g} images/s{workers}"


def _cost(found: RunStatus) -> str:
    kind = {None: "device", "cuda": "GPU", "cpu": "CPU"}.get(found.device, found.device)
    spent, elapsed = (clock_time(3600 * hours) for hours in (found.device_hours, found.hours))
    parts = [f"{spent} of {kind} time" + (f" in {elapsed}" if spent != elapsed else "")]
    if found.petaflop is not None:
        parts.append(flop_words(1e3 * found.petaflop))
    return ", ".join(parts)
