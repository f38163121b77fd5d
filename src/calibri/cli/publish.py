"""``calibri publish``."""

from __future__ import annotations

from typing import Annotated

import typer

from calibri.cli.display import err, loading, out, say, verbatim
from calibri.cli.paths import calibration_source


def publish(
    calibration: Annotated[
        str,
        typer.Argument(
            metavar="RUN_OR_CALIBRATION", help="A finished run or a calibration folder."
        ),
    ],
    repo_id: Annotated[
        str, typer.Argument(metavar="REPO_ID", help="user/name; made if it does not exist.")
    ],
    private: Annotated[
        bool, typer.Option("--private", help="Make a new repository private.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the page and upload nothing.")
    ] = False,
) -> None:
    """Upload a calibration with its card to the Hugging Face Hub and print its address.

    Log in once with [bold]hf auth login[/bold], or set HF_TOKEN.

        calibri publish runs/20260131-120000 user/flux-four-steps --dry-run
        calibri publish runs/20260131-120000 user/flux-four-steps --private
    """
    source = calibration_source(calibration)
    if dry_run:
        _show_page(source, repo_id)
        return
    with loading(f"Uploading to {repo_id}"):
        from calibri import publish as publish_calibration

        address = publish_calibration(source, repo_id, private=private)
    verbatim(out(), address)


def _show_page(source: str, repo_id: str) -> None:
    from calibri.artifact import preview

    for line in preview(source, repo_id).splitlines():
        verbatim(out(), line)
    say(err(), f"Nothing was uploaded. This is what the page of {repo_id} would say.")
