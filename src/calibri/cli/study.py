"""``calibri study``: which of two images people prefer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from calibri.cli.display import command, loading, out, printable, say, verbatim
from calibri.cli.options import DATA, MACHINE, RUN, DeviceOption, DtypeOption, JsonOption
from calibri.cli.quiet import quiet_libraries
from calibri.errors import StudyError

if TYPE_CHECKING:
    from calibri.study import StudyResults

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Ask people: make a blind study of two images side by side, serve it, report it.",
)

_Study = Annotated[
    Path, typer.Argument(metavar="STUDY", help="Folder that `calibri study create` made.")
]
_Calibration = Annotated[
    str | None,
    typer.Argument(
        metavar="CALIBRATION",
        help="A calibration folder, a finished run, or a Hugging Face repository.",
    ),
]
_Images = Annotated[
    list[str] | None,
    typer.Option(
        "--images",
        metavar="NAME=FOLDER",
        help="In place of a calibration: a condition and its images, with equal file names in "
        "every folder; twice or more. Verdicts speak of the last.",
        rich_help_panel=DATA,
    ),
]
_Prompts = Annotated[
    str | None,
    typer.Option(
        "--prompts",
        metavar="FILE",
        help="Prompts that the search did not use; with --images one for each image, in the order "
        "of their names.",
        rich_help_panel=DATA,
    ),
]
_Pipeline = Annotated[
    str | None,
    typer.Option(
        "--pipeline",
        metavar="PIPELINE",
        help="Another pipeline than the one it was made for; same kind of transformer.",
        rich_help_panel=DATA,
    ),
]
_NumPrompts = Annotated[
    int, typer.Option("--num-prompts", help="Prompts to sample.", rich_help_panel=DATA)
]
_OriginalSteps = Annotated[
    list[int] | None,
    typer.Option(
        "--original-steps",
        metavar="N",
        help="Steps of the original; repeatable, each is compared. Default: as calibrated.",
        rich_help_panel=DATA,
    ),
]
_Participants = Annotated[
    int, typer.Option("--participants", help="Invitations to make.", rich_help_panel=RUN)
]
_PairsEach = Annotated[
    int | None,
    typer.Option(
        "--pairs-each",
        help="Pairs that each participant sees; default: all, at most 30.",
        rich_help_panel=RUN,
    ),
]
_Checks = Annotated[
    int,
    typer.Option("--checks", help="Attention checks that each sees besides.", rich_help_panel=RUN),
]
_Title = Annotated[
    str, typer.Option("--title", help="Heading of the first page.", rich_help_panel=RUN)
]
_Consent = Annotated[
    Path | None,
    typer.Option(
        "--consent",
        metavar="FILE",
        help="A text of what participants agree to; default: a plain one.",
        rich_help_panel=RUN,
    ),
]
_Seed = Annotated[
    int,
    typer.Option("--seed", min=0, help="Of noise, sides and orders.", rich_help_panel=RUN),
]


def create(
    calibration: _Calibration = None,
    output: Annotated[Path, typer.Option("--output", metavar="DIR", help="Folder to make.")] = Path(
        "study"
    ),
    images: _Images = None,
    prompts: _Prompts = None,
    pipeline: _Pipeline = None,
    num_prompts: _NumPrompts = 30,
    original_steps: _OriginalSteps = None,
    participants: _Participants = 20,
    pairs_each: _PairsEach = None,
    checks: _Checks = 3,
    title: _Title = "Which image is better?",
    consent: _Consent = None,
    seed: _Seed = 1,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "float32",
) -> None:
    """Make a study of a calibration against its original, or of folders of images.

    The folder has the images under names that say nothing, and a secret link for each participant
    in invitations.csv.

        calibri study create runs/20260131-120000 --participants 50
        calibri study create --images original=a --images calibrated=b --prompts prompts.txt
    """
    folders = _folders(images) if images else None
    source = None if calibration is None else _source(calibration)
    with loading("Making the study"):
        from calibri.study import create as create_study

        quiet_libraries()
        made = create_study(
            source,
            output=output,
            images=folders,
            prompts=prompts,
            pipeline=pipeline,
            num_prompts=num_prompts,
            original_steps=original_steps or (),
            participants=participants,
            pairs_each=pairs_each,
            checks=checks,
            title=title,
            consent=consent,
            seed=seed,
            device=device,
            dtype=dtype,
        )
    verbatim(out(), str(made))
    say(out(), f"Send each participant one of the links of {made / 'invitations.csv'}, then:")
    verbatim(out(), "  " + command("calibri", "study", "serve", made))


def serve(
    study: _Study,
    host: Annotated[
        str,
        typer.Option(
            "--host",
            help="Address to listen at; put a proxy with TLS in front of other than loopback.",
            rich_help_panel=MACHINE,
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="0: any.", rich_help_panel=MACHINE)
    ] = 8000,
) -> None:
    """Serve the pages of a study until Ctrl-C; it goes on where it was when served again.

    Needs [bold]pip install 'calibri\\[study]'[/bold].

        calibri study serve study
    """
    from calibri.study import serve as serve_study

    serve_study(study, host=host, port=port)


def report(
    study: _Study,
    width: Annotated[
        float,
        typer.Option(
            "--width", help="Of an interval, from end to end, for how many votes are still needed."
        ),
    ] = 0.1,
    as_json: JsonOption = False,
) -> None:
    """Say what the votes say so far, with 95% intervals, and write the report.

    Into the folder go report.html, results.json and votes.csv. The study may go on meanwhile.

        calibri study report study
    """
    from calibri.study import report as report_study

    results = report_study(study, width=width)
    if as_json:
        typer.echo(results.model_dump_json(indent=2))
        return
    console = out()
    say(console, Text(printable(results.verdict), style="bold"))
    console.print(_table(results))
    left_out = len(results.left_out)
    people = f"{results.agreed} of {results.invited} invited took part, {results.finished} finished"
    say(console, f"{people}, {left_out} failed the attention checks and are left out.")
    verbatim(console, str(study / "report.html"))


COMMANDS = (create, serve, report)


def _table(results: StudyResults) -> Table:
    from calibri.study import percent

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("question", "", "for", "ties", "against", "share", "alpha", "votes needed"):
        table.add_column(name)
    for c in results.contests:
        alpha = "-" if c.agreement is None else f"{c.agreement:.2f}"
        needed = "more prompts" if c.further_votes is None else str(c.further_votes)
        cells = (c.question, f"{c.second} over {c.first}", c.wins, c.ties, c.losses)
        table.add_row(
            *(Text(printable(str(cell))) for cell in (*cells, percent(c.preferred), alpha, needed))
        )
    return table


def _source(given: str) -> str:
    from calibri.cli.paths import calibration_source

    return calibration_source(given)


def _folders(texts: list[str]) -> dict[str, Path]:
    folders: dict[str, Path] = {}
    for text in texts:
        name, separator, folder = text.partition("=")
        if not (separator and name.strip() and folder):
            raise StudyError(f"'{text}' is not of the form NAME=FOLDER, e.g. original=images/a.")
        if name.strip() in folders:
            raise StudyError(f"'{name.strip()}' is given twice. Name every condition differently.")
        folders[name.strip()] = Path(folder)
    return folders
