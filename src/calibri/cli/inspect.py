"""``calibri inspect``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from calibri.cli.display import loading, out, printable
from calibri.cli.options import GranularityName, JsonOption, PipelineArgument
from calibri.cli.quiet import quiet_libraries
from calibri.results import SiteRecord

if TYPE_CHECKING:
    from calibri.inspection import Inspection

_STREAM_STYLES = {"visual": "cyan", "text": "magenta", "joint": "yellow"}


def inspect(
    pipeline: PipelineArgument = "shapes",
    granularity: Annotated[
        GranularityName, typer.Option("--granularity", help="Which scalar a site is shown under.")
    ] = "gate",
    as_json: JsonOption = False,
) -> None:
    """List the blocks of a pipeline, the sites in them, and the scalars per granularity.

    A site is one output that a block adds to the stream; calibrating scales it.

        calibri inspect
        calibri inspect stabilityai/stable-diffusion-3.5-medium --granularity layer --json
    """
    with loading(f"Loading {pipeline}"):
        from calibri.inspection import inspect as inspect_pipeline

        quiet_libraries()
        inspection = inspect_pipeline(pipeline, granularity=granularity)
    console = out()
    if as_json:
        typer.echo(inspection.model_dump_json(indent=2))
        return
    console.print(site_tree(inspection))
    console.print()
    console.print(_counts(inspection, granularity))


def site_tree(inspection: Inspection) -> Tree:
    """Draw blocks, the scalars in them where several sites share one, and sites."""
    head = f"{inspection.pipeline}  {inspection.transformer_class}"
    tree = Tree(Text(printable(head), style="bold"), guide_style="dim")
    branches: dict[str, Tree] = {}
    for site in inspection.sites:
        if site.block not in branches:
            branches[site.block] = tree.add(Text(printable(site.block)))
        shares = site.parameter not in (site.block, site.name)
        if shares and site.parameter not in branches:
            label = _inside(site.parameter, site)
            branches[site.parameter] = branches[site.block].add(Text(label))
        parent = site.parameter if shares else site.block
        branches[parent].add(_leaf(site))
    tree.add(Text.assemble(printable(inspection.output), "  ", ("output weight", "dim")))
    return tree


def _leaf(site: SiteRecord) -> Text:
    style = _STREAM_STYLES.get(site.stream, "")
    return Text.assemble(_inside(site.name, site), "  ", (site.stream, style))


def _inside(name: str, site: SiteRecord) -> str:
    return printable(name.removeprefix(f"{site.block}."))


def _counts(inspection: Inspection, chosen: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("granularity")
    table.add_column("scalars", justify="right")
    for name, count in inspection.counts.items():
        table.add_row(name, str(count), style="bold" if name == chosen else "")
    return table
