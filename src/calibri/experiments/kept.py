"""The folder of an experiment: opened by its settings, filled with what was found."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from pathlib import Path

from calibri.errors import RunError
from calibri.experiments.kinds import Heading, Outcome
from calibri.experiments.names import digest
from calibri.files import write_atomically
from calibri.reporting import Findings, render_findings, standalone
from calibri.runs import RunFolder
from calibri.version import __version__

EXPERIMENTS_FOLDER = Path("experiments")


def open_folder(name: str, settings: Mapping[str, object], output: Path | None) -> RunFolder:
    """Make the folder of an experiment, or open that of the same one.

    Args:
        name: of the experiment.
        settings: everything that decides its figures.
        output: the folder; None for one named by all that.

    Raises:
        RunError: it belongs to something else.
    """
    content = json.loads(json.dumps({"experiment": name, "settings": settings}, sort_keys=True))
    path = output or EXPERIMENTS_FOLDER / f"{name}-{digest(json.dumps(content, sort_keys=True))}"
    if not (path / "config.json").exists():
        return RunFolder.create(path, content)
    folder = RunFolder.open(path, of_experiment=True)
    if folder.config.get("experiment") != name:
        raise RunError(f"{path} does not belong to the experiment '{name}'. Name another --output.")
    before, now = dict(folder.config["settings"]), content["settings"]  # type: ignore[call-overload]
    changed = sorted(key for key in {*before, *now} if before.get(key) != now.get(key))
    if changed:
        raise RunError(
            f"{path} was made with other settings: {', '.join(changed[:3])}"
            f"{f' and {len(changed) - 3} more' if len(changed) > 3 else ''} differ. Name another "
            "--output, or none: each setting has a folder of its own."
        )
    return folder


def keep(
    folder: RunFolder,
    heading: Heading,
    outcome: Outcome,
    settings: Mapping[str, object],
    facts: Mapping[str, str],
) -> Findings:
    """Write what was found into its folder: for tools, for people, and the figure alone."""
    findings = Findings(
        experiment=str(folder.config["experiment"]),
        title=heading.title,
        paper=heading.paper,
        claim=heading.claim,
        answer=outcome.answer,
        verdict=outcome.verdict,
        method=outcome.method,
        tables=list(outcome.tables),
        facts=dict(facts),
        settings=dict(settings),
        intervals=outcome.intervals,
        folder=str(folder.path),
        calibri_version=__version__,
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    )
    write_atomically(folder.results_path, findings.model_dump_json(indent=1).encode())
    page = render_findings(findings, outcome.drawings)
    write_atomically(folder.report_path, page.encode())
    if outcome.drawings:
        figure = standalone(outcome.drawings[0])
        write_atomically(folder.path / "figure.svg", figure.encode())
    return findings
