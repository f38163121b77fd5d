"""``calibri report``."""

from __future__ import annotations

from calibri.cli.display import out, verbatim
from calibri.cli.options import RunArgument
from calibri.cli.paths import run_path


def report(run: RunArgument) -> None:
    """Write the report of a finished run again and print where it is.

    The report is one HTML file that needs nothing else: open it in a browser, or send it on.

        calibri report runs/20260131-120000
    """
    from calibri import report as write_report

    verbatim(out(), str(write_report(run_path(run))))
