"""``calibri inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from calibri.cli.display import loading, out, printable, say
from calibri.cli.options import GranularityName, JsonOption
from calibri.cli.paths import check_pipeline
from calibri.cli.quiet import quiet_libraries
from calibri.errors import ConfigError
from calibri.results import SiteRecord

if TYPE_CHECKING:
    from calibri import Discovery, Inspection
    from calibri.runs import SpaceRecord

_STREAM_STYLES = {"visual": "cyan", "text": "magenta", "joint": "yellow", "audio": "green"}


_Pipeline = Annotated[
    str | None,
    typer.Argument(
        metavar="PIPELINE",
        help="'shapes' (shipped, the default), a diffusers folder, or a repository.",
        show_default=False,
    ),
]
_Granularity = Annotated[
    GranularityName | None,
    typer.Option("--granularity", help="Which scalar a site is shown under; default gate."),
]
_ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="Of the search to describe; YAML."),
]
_Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Any setting of the search, such as space.members=2. Repeatable.",
    ),
]
_Discover = Annotated[
    bool, typer.Option("--discover", help="Measure the sites in one step of the pipeline.")
]
_Save = Annotated[
    Path | None, typer.Option("--save", metavar="FILE", help="Write what was discovered.")
]
_Sites = Annotated[
    Path | None, typer.Option("--sites", metavar="FILE", help="Use the sites of this file.")
]


def inspect(
    pipeline: _Pipeline = None,
    granularity: _Granularity = None,
    config_file: _ConfigFile = None,
    overrides: _Overrides = None,
    discover: _Discover = False,
    save: _Save = None,
    sites: _Sites = None,
    as_json: JsonOption = False,
) -> None:
    """List the blocks of a pipeline, the sites in them, and the numbers that a search of it has.

    A site is one output that a block adds to the stream; calibrating scales it.

        calibri inspect
        calibri inspect stabilityai/stable-diffusion-3.5-medium --granularity layer --json
        calibri inspect --set sampling.guidance_scale=4 --set space.branches=separate
        calibri inspect ./my-pipeline --discover --save sites.json
    """
    if save is not None and not discover:
        raise ConfigError("--save writes what --discover finds. Add --discover.")
    values = {"pipeline": pipeline, "space.granularity": granularity}
    with loading(f"Loading {pipeline or 'the pipeline'}"):
        from calibri.config import load_config

        config = load_config(config_file, overrides or (), values)
        check_pipeline(config.pipeline, known_here=True)
        from calibri import inspect as inspect_pipeline

        quiet_libraries()
        inspection = inspect_pipeline(config=config, discover=discover, sites=sites)
    if save is not None and inspection.discovery is not None:
        inspection.discovery.save(save)
    console = out()
    if as_json:
        typer.echo(inspection.model_dump_json(indent=2))
        return
    console.print(site_tree(inspection))
    console.print()
    space = inspection.space
    chosen = config.space.granularity if space is None else space.granularity
    console.print(_counts(inspection, chosen))
    if inspection.space is not None:
        console.print()
        console.print(_space(inspection.space))
    if inspection.discovery is not None:
        console.print()
        console.print(_measured(inspection.discovery))
        _show_doubts(inspection.discovery)


def _measured(discovery: Discovery) -> Table:
    """Tabulate the figures of the tests that accepted each site."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("measured")
    for name in ("influence", "nonlinearity"):
        table.add_column(name, justify="right")
    table.add_column("folds into")
    for finding in discovery.findings:
        folds = ", ".join(fold.path for fold in finding.site.fold) or "-"
        table.add_row(
            printable(finding.site.name),
            f"{finding.influence:.2g}",
            f"{finding.nonlinearity:.1g}",
            printable(folds),
        )
    return table


def _show_doubts(discovery: Discovery) -> None:
    doubted = [block for block in discovery.blocks if not block.is_identity]
    for block in doubted:
        say(
            out(),
            f"{block.block_class} ({block.members} blocks, {block.block} was measured) is not the "
            "identity without the branches found in it, so these are left out. Look at its code, "
            "and move them from 'doubtful' to 'findings' in the saved file if they are right.",
        )


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


def _space(space: SpaceRecord) -> Table:
    """Tabulate the parts of the flat vector."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("a search has")
    table.add_column("numbers", justify="right")
    parts = [f"{space.names} {space.granularity} scalars"]
    if len(space.members) > 1:
        parts.append(f"{len(space.members)} members ({', '.join(space.members)})")
    if space.knots > 1:
        parts.append(f"{space.knots} knots")
    table.add_row(" x ".join(parts), str(space.names * len(space.members) * space.knots))
    if space.output_weights:
        table.add_row("output weights", str(space.output_weights))
    for name in space.factors:
        table.add_row(f"factor on the {name}", "1")
    table.add_row("in all", str(space.size), style="bold")
    return table


def _counts(inspection: Inspection, chosen: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("granularity")
    table.add_column("scalars", justify="right")
    for name, count in inspection.counts.items():
        table.add_row(name, str(count), style="bold" if name == chosen else "")
    return table
