"""``calibri models``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from calibri.cli.display import loading, out, printable, say
from calibri.cli.options import JsonOption
from calibri.cli.quiet import quiet_libraries

if TYPE_CHECKING:
    from calibri import ModelStatus

_STYLES = {"table": "green", "discover": "yellow", "refused": "red"}


def models(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[CLASS]...", help="Only these classes.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the transformer classes of diffusers, and what can be calibrated in each.

    Counts are those of the model that a class builds by default, often its largest release.

        calibri models
        calibri models FluxTransformer2DModel WanTransformer3DModel --json
    """
    with loading("Building every model without weights"):
        from calibri import models as statuses

        quiet_libraries()
        found = statuses(names)
    if as_json:
        typer.echo(json.dumps([status.model_dump() for status in found], indent=2))
        return
    console = out()
    console.print(_table(found))
    console.print()
    known = sum(status.status == "table" for status in found)
    say(console, f"{known} of {len(found)} classes have known sites.")


def _table(found: list[ModelStatus]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("class", "sites"):
        table.add_column(name)
    for name in ("block", "layer", "gate"):
        table.add_column(name, justify="right")
    for name in ("fuses", "guidance"):
        table.add_column(name)
    for status in found:
        table.add_row(*_cells(status))
    return table


def _cells(status: ModelStatus) -> list[Text]:
    counts = [str(n) for n in status.counts.values()] if status.counts else ["-"] * 3
    last = status.reason or status.guidance or "-"
    return [
        Text(printable(status.name)),
        Text(status.status, style=_STYLES[status.status]),
        *(Text(count) for count in counts),
        Text(status.folds or "-"),
        Text(printable(last), style="dim" if status.reason else ""),
    ]
