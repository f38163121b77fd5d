"""``calibri extract``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from calibri.cli.display import command, err, loading, out, printable, say, verbatim
from calibri.cli.options import GranularityName, GuidanceOption, JsonOption, StepsOption
from calibri.cli.quiet import quiet_libraries

if TYPE_CHECKING:
    from calibri import Extraction

_Base = Annotated[
    str, typer.Argument(metavar="BASE", help="The model before: a folder or a repository.")
]
_Tuned = Annotated[
    str,
    typer.Argument(
        metavar="TUNED", help="The model after: a folder, a repository, a .safetensors file."
    ),
]
_Output = Annotated[
    Path | None,
    typer.Option("--output", metavar="DIR", help="Folder for the calibration; new or empty."),
]
_Project = Annotated[
    bool,
    typer.Option("--project", help="Write the nearest scaling where it is not all of the change."),
]
_Granularity = Annotated[
    GranularityName, typer.Option("--granularity", help="One scalar per block, layer or gate.")
]
_Revision = Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit of BASE.")]
_STYLES = {"scaling": "green", "unchanged": "dim", "no weights": "dim"}


def extract(
    base: _Base,
    tuned: _Tuned,
    output: _Output = None,
    project: _Project = False,
    granularity: _Granularity = "gate",
    steps: StepsOption = None,
    guidance_scale: GuidanceOption = None,
    revision: _Revision = None,
    as_json: JsonOption = False,
) -> None:
    """Recover the scalars of a scaled model, or say how much of any change is a scaling.

    Reads the weights a few rows at a time. TUNED may also be any fine-tune, or a LoRA: the table
    says for each output its best scalar, and how much of its change that explains.

        calibri extract black-forest-labs/FLUX.1-dev ./calibrated --output recovered
        calibri extract black-forest-labs/FLUX.1-dev style-lora.safetensors
    """
    with loading("Comparing the weights"):
        from calibri import extract as extract_coefficients

        quiet_libraries()
        found = extract_coefficients(
            base,
            tuned,
            output=output,
            project=project,
            granularity=granularity,
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            revision=revision,
        )
    if as_json:
        typer.echo(found.model_dump_json(indent=2))
        return
    _show(found)
    if found.folder is not None:
        verbatim(out(), str(found.folder))
        use = command("calibri", "generate", base, "--calibration", found.folder, "A PROMPT")
        say(err(), f"Use it: {use}")


def _show(found: Extraction) -> None:
    console = out()
    console.print(_table(found))
    console.print()
    say(console, Text(printable(found.verdict), style="bold"))
    if not found.is_scaling:
        say(
            console,
            f"{found.at_sites:.1%} of the squared norm of the change is in weights that take a "
            f"scale; scales explain {found.explained:.1%} of all of it.",
        )


def _table(found: Extraction) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("output of")
    for name in ("scale", "explained", "residual", "rounding"):
        table.add_column(name, justify="right")
    table.add_column("verdict")
    for site in found.sites:
        table.add_row(
            printable(site.name),
            f"{site.scale:.6f}",
            "-" if site.explained is None else f"{site.explained:.2%}",
            f"{site.residual:.1e}",
            f"{site.rounding:.1e}",
            Text(site.verdict, style=_STYLES.get(site.verdict, "yellow")),
        )
    return table
