"""The ``calibri`` command."""

from __future__ import annotations

import inspect as python
from collections.abc import Callable, Sequence
from typing import Annotated

import typer

from calibri.cli import guard, rewards, study
from calibri.cli.calibrate import calibrate
from calibri.cli.evaluate import evaluate
from calibri.cli.experiment import experiment
from calibri.cli.export import export
from calibri.cli.extract import extract
from calibri.cli.fuse import fuse
from calibri.cli.gallery import gallery
from calibri.cli.generate import generate
from calibri.cli.import_ import import_
from calibri.cli.inspect import inspect
from calibri.cli.models import models
from calibri.cli.plan import plan
from calibri.cli.publish import publish
from calibri.cli.report import report
from calibri.cli.resume import resume
from calibri.cli.serve_reward import serve_reward
from calibri.cli.status import status
from calibri.version import __version__

app = typer.Typer(
    name="calibri",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_USE, _REWARDS = "Use a calibration", "Rewards"
# The commands as `calibri --help` groups them.
PANELS = {
    "Calibrate": (plan, calibrate, status, resume, report),
    _USE: (generate, evaluate, fuse, publish, export, import_, extract, gallery),
    "Look at a model": (inspect, experiment, models),
    _REWARDS: (serve_reward,),
}


def _help(function: Callable[..., None]) -> str:
    """Turn a docstring into help: paragraphs reflow, a block of examples does not."""
    paragraphs = python.cleandoc(function.__doc__ or "").split("\n\n")
    return "\n\n".join(_paragraph(paragraph) for paragraph in paragraphs)


def _paragraph(text: str) -> str:
    lines = text.split("\n")
    if text.lstrip().startswith("calibri "):
        return "\n".join(f"[cyan]{line.strip()}[/cyan]" for line in lines)
    return " ".join(lines)


def _register(
    group: typer.Typer, commands: Sequence[Callable[..., None]], panel: str | None = None
) -> None:
    for command in commands:
        name = command.__name__.rstrip("_").replace("_", "-")
        group.command(name, rich_help_panel=panel, help=_help(command))(guard.guarded(command))


for _panel, _commands in PANELS.items():
    _register(app, _commands, _panel)
_register(rewards.app, rewards.COMMANDS)
_register(study.app, study.COMMANDS)
app.add_typer(study.app, name="study", rich_help_panel=_USE)
app.add_typer(rewards.app, name="rewards", rich_help_panel=_REWARDS)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"calibri {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks. Goes before the command.")
    ] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", is_eager=True, callback=_print_version
        ),
    ] = False,
) -> None:
    """Calibrate Diffusion Transformers: about a hundred scalars, better images, fewer steps."""
    guard.debug.set(debug)


def main() -> None:
    """Run the command line."""
    app()
