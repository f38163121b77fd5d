"""``calibri rewards``: list, convert and check rewards."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from calibri.cli.display import err, loading, out, printable, say, verbatim
from calibri.cli.options import DeviceOption, JsonOption
from calibri.cli.quiet import quiet_libraries

if TYPE_CHECKING:
    from calibri.rewards import GoldenCheck, ListedReward

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="List rewards, convert legacy weights, check a reward on golden pictures.",
)


def list_(as_json: JsonOption = False) -> None:
    """List the rewards with their units, ranges and licences; no weights are loaded.

    calibri rewards list
    calibri rewards list --json
    """
    with loading("Reading what each reward says of itself"):
        from calibri.rewards import list_rewards

        quiet_libraries()
        found = list_rewards()
    if as_json:
        typer.echo(json.dumps([_as_json(reward) for reward in found], indent=2, allow_nan=False))
        return
    console = out()
    console.print(_rewards_table(found))
    for reward in found:
        if reward.problem:
            say(err(), reward.problem)


def convert(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="Legacy weights: a .pt, .pth or .bin file.")
    ],
) -> None:
    """Convert legacy weights to safetensors, once, beside the file; the file stays.

    Only tensors are read: code in the file does not run, and a file that needs it is refused.

        calibri rewards convert ImageReward.pt
    """
    with loading(f"Converting {path.name}"):
        from calibri.rewards import convert_checkpoint

        written = convert_checkpoint(path)
    verbatim(out(), str(written))


def check(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Reward to check, or PATH.py:NAME of your own.")
    ],
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            "--checkpoint", metavar="DIR", help="Folder with the reward's files; default: the hub."
        ),
    ] = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Score golden pictures and print the difference from the stored figures, if there are any.

    calibri rewards check shapes
    calibri rewards check pickscore --checkpoint my-pickscore --device cuda
    """
    with loading(f"Scoring with {name}"):
        from calibri.devices import resolve_device
        from calibri.rewards import check_reward

        quiet_libraries()
        found = check_reward(name, checkpoint=checkpoint, device=str(resolve_device(device)))
    if as_json:
        typer.echo(json.dumps(_check_json(found), indent=2, allow_nan=False))
    else:
        _show_check(found)


COMMANDS = (list_, convert, check)


def _as_json(reward: ListedReward) -> dict[str, Any]:
    info = reward.info
    if info is None:
        return {"name": reward.name, "problem": reward.problem}
    return {
        "name": reward.name,
        "variant": info.variant,
        "unit": info.unit,
        "range": [_finite(bound) for bound in info.range],
        "kind": info.kind,
        "license": info.license,
        "differentiable": info.differentiable,
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _rewards_table(found: Sequence[ListedReward]) -> Table:
    table = _table("name", "range", "kind", "licence", "differentiable", "unit")
    for reward in found:
        if reward.info is None:
            name = Text(printable(reward.name))
            table.add_row(name, *["-"] * 4, Text("cannot be made", style="red"))
            continue
        info = reward.info
        gradient = "yes" if info.differentiable else "no"
        cells = (reward.name, _range(info.range), info.kind, info.license or "-", gradient)
        table.add_row(*(Text(printable(cell)) for cell in (*cells, info.unit or "-")))
    return table


def _range(bounds: tuple[float, float]) -> str:
    low, high = bounds
    if math.isinf(low) and math.isinf(high):
        return "any"
    if math.isinf(high):
        return f"from {low:g}"
    return f"up to {high:g}" if math.isinf(low) else f"{low:g} to {high:g}"


def _table(*names: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in names:
        table.add_column(name, no_wrap=name in ("name", "range", "picture"))
    return table


def _show_check(found: GoldenCheck) -> None:
    console = out()
    verbatim(console, f"reward   {found.info.name}")
    verbatim(console, f"variant  {found.info.variant}")
    verbatim(console, f"unit     {found.info.unit or '-'}")
    console.print()
    console.print(_scores_table(found))
    console.print()
    say(console, _verdict(found))


def _scores_table(found: GoldenCheck) -> Table:
    compared = ("stored", "difference") if found.stored is not None else ()
    table = _table("picture", "prompt", "score", *compared)
    columns: list[list[str]] = [[f"{score:.6g}" for score in found.scores]]
    if found.stored is not None and found.differences is not None:
        columns.append([f"{figure:.6g}" for figure in found.stored])
        columns.append([f"{difference:+.2e}" for difference in found.differences])
    names, prompts = found.pictures.names, found.pictures.prompts
    for row in zip(names, prompts, *columns, strict=True):
        table.add_row(*map(Text, row))
    return table


def _verdict(found: GoldenCheck) -> str:
    if found.differences is not None:
        # The default comparison of max() would hide a NaN.
        largest = max(map(abs, found.differences), key=lambda x: math.inf if math.isnan(x) else x)
        return f"Largest difference from the stored figures: {largest:.2e}"
    if not found.stored_variants:
        return f"No stored figure exists yet for {found.info.name}."
    others = "; ".join(found.stored_variants)
    return f"No stored figure exists yet for this variant and these pictures. Stored are: {others}"


def _check_json(found: GoldenCheck) -> dict[str, Any]:
    stored, differences = found.stored, found.differences
    return {
        "name": found.info.name,
        "variant": found.info.variant,
        "unit": found.info.unit,
        "pictures": found.pictures.sha256,
        "prompts": _by_picture(found, found.pictures.prompts),
        "scores": _by_picture(found, map(_finite, found.scores)),
        "stored": stored and _by_picture(found, stored),
        "differences": differences and _by_picture(found, map(_finite, differences)),
    }


def _by_picture(found: GoldenCheck, values: Any) -> dict[str, Any]:
    return dict(zip(found.pictures.names, values, strict=True))
