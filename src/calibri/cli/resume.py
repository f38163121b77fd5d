"""``calibri resume``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from calibri.cli.display import loading
from calibri.cli.options import LogOption, MachineOption, RunArgument, WorkersOption, workers_of
from calibri.cli.outcome import run_with_progress
from calibri.cli.paths import run_path
from calibri.cli.quiet import quiet_libraries

if TYPE_CHECKING:
    from calibri.progress import Progress
    from calibri.results import RunSummary


def resume(
    run: RunArgument,
    log: LogOption = None,
    device: MachineOption = None,
    workers: WorkersOption = None,
) -> None:
    """Continue a run that was stopped; it ends exactly as if it never had been.

    What is finished is read from the run's journal, only the rest is computed.

        calibri resume runs/20260131-120000
        calibri resume 20260131-120000 --workers 4
    """
    from calibri.runs import RunFolder

    path = run_path(run)
    folder = RunFolder.open(path)
    with loading("Starting"):
        from calibri import resume as resume_run
        from calibri.config import validate_config

        config = validate_config(folder.config)
        quiet_libraries()

    def work(progress: Progress) -> RunSummary:
        return resume_run(
            path, workers=workers_of(workers), device=device, progress=progress, callbacks=log
        )

    run_with_progress(path, config, work)
