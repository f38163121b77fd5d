"""docs/reproduction.md from finished experiments: claims, answers, tables, figures, times.

python -m benchmarks.reproduction experiments/*

Reads ``results.json`` and ``figure.svg`` of each folder, as ``calibri experiment`` leaves them, and
writes what stands between the two marks of the page; its other text stays. Folders in any order.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from calibri.config import RunConfig
from calibri.errors import RunError
from calibri.experiments.names import slug
from calibri.experiments.registry import EXPERIMENTS
from calibri.files import write_atomically
from calibri.reporting import Cell, Findings, Table
from calibri.results import Figure
from calibri.runs import settings_of

PAGE = Path(__file__).parents[1] / "docs" / "reproduction.md"
BEGIN, END = "<!-- begin of results -->", "<!-- end of results -->"
_ORDER = list(EXPERIMENTS)
_SEARCHES = 3  # of each kind, where no other number is asked for
_PIPES = str.maketrans({"|": "\\|", "\n": " "})


def read(folder: Path) -> Findings:
    """Read what an experiment found.

    Raises:
        RunError: the folder is not that of a finished experiment.
    """
    try:
        return Findings.model_validate_json((folder / "results.json").read_bytes())
    except (OSError, ValueError) as error:
        raise RunError(f"{folder} holds no finished experiment. Name folders of some.") from error


def command(findings: Findings) -> str:
    """The command that gives the same figures, apart from what a machine decides."""
    words = ["calibri experiment", findings.experiment]
    usual = settings_of(RunConfig()) | _usual(findings.experiment)
    settings = dict(findings.settings)
    for name in _pipelines(findings) if "Pipelines" in findings.facts else ():
        words.append(f"--pipeline {name}")
        settings |= {key.removeprefix(f"{name}: "): v for key, v in settings.items()}
        settings.pop("pipeline", None)
    seeds = settings.get("searches: seeds")
    if isinstance(seeds, list) and len(seeds) != _SEARCHES:
        words.append(f"--searches {len(seeds)}")
    for key, value in settings.items():
        # What a configuration leaves open of the space is resolved by the pipeline.
        is_open = usual.get(key) is None and key.startswith("space.")
        if key in usual and not is_open and value != usual[key]:
            words.append(f"--set {key}={_written(value)}")
    return " ".join(words)


def _pipelines(findings: Findings) -> list[str]:
    """Names of the pipelines, of which there are several in one experiment."""
    facts = findings.facts
    return facts["Pipelines"].split(", ") if "Pipelines" in facts else [facts.get("Pipeline", "")]


def _usual(name: str) -> dict[str, object]:
    """Settings that an experiment has where none are given."""
    made = importlib.import_module(f"calibri.experiments.{name}").EXPERIMENT
    found: dict[str, object] = {}
    for section, values in getattr(made, "defaults", {}).items():
        if isinstance(values, dict):
            found |= {f"{section}.{key}": value for key, value in values.items()}
        else:
            found[section] = values
    return found


def _written(value: object) -> str:
    return f"'{value}'" if isinstance(value, list | tuple) else str(value)


def cell(value: Cell, *, signed: bool) -> str:
    """Write a cell in Markdown."""
    if isinstance(value, Figure):
        form = "+.3f" if signed else ".3f"
        if max(abs(value.mean), abs(value.low), abs(value.high)) >= 100:
            form = ",.0f"
        return f"{value.mean:{form}} [{value.low:{form}}, {value.high:{form}}]"
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value).translate(_PIPES)


def table(found: Table) -> list[str]:
    """Write a table in Markdown."""
    signed = [column in found.signed for column in found.columns]
    rows = [[cell(v, signed=s) for v, s in zip(row, signed, strict=True)] for row in found.rows]
    return ["", f"{found.title}:", "", *_rows(found.columns, rows)]


def _rows(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    head = [column.translate(_PIPES) for column in columns]
    return [
        f"| {' | '.join(head)} |",
        f"|{'---|' * len(head)}",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]


def claims(all_findings: Sequence[Findings]) -> list[str]:
    """The claims of the paper, and what came of each."""
    rows = [
        [
            f"`{f.experiment}`",
            ", ".join(_pipelines(f)),
            f"{f.paper}: {f.claim}".translate(_PIPES),
            f"**{f.answer}**: {f.verdict}".translate(_PIPES),
        ]
        for f in all_findings
    ]
    return _rows(["experiment", "pipeline", "the paper", "here"], rows)


def section(findings: Findings, image: str | None) -> list[str]:
    """One experiment with its tables."""
    facts = {k: v for k, v in findings.facts.items() if k != "Computed on"}
    return [
        "",
        f"### {findings.title}: `{findings.experiment}`",
        "",
        f"`{command(findings)}`",
        "",
        f"{findings.method} Intervals are {findings.intervals}.",
        "",
        ", ".join(f"{name.lower()} {value}" for name, value in facts.items()) + ".",
        *(["", f"![{findings.title}]({image})"] if image else []),
        *(line for one in findings.tables for line in table(one)),
    ]


def page(text: str, all_findings: Sequence[Findings], images: dict[int, str]) -> str:
    """Put results between the marks of a page.

    Raises:
        RunError: the page has no marks.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise RunError(f"The page has no line '{BEGIN}' before one '{END}'.")
    lines = ["", *claims(all_findings)]
    for number, findings in enumerate(all_findings):
        lines += section(findings, images.get(number))
    return "\n".join([before + begin, *lines, "", end + after])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args()
    found = sorted(
        ((read(folder), folder) for folder in options.folders),
        key=lambda pair: (_ORDER.index(pair[0].experiment), str(pair[1])),
    )
    place = options.page.parent / "images" / "experiments"
    place.mkdir(parents=True, exist_ok=True)
    images = {}
    for number, (findings, folder) in enumerate(found):
        if (folder / "figure.svg").exists():
            what = slug(" ".join([findings.experiment, *_pipelines(findings)]))
            name = f"{number + 1:02d}-{what}.svg"
            write_atomically(place / name, (folder / "figure.svg").read_bytes())
            images[number] = f"images/experiments/{name}"
    text = page(options.page.read_text(encoding="utf-8"), [f for f, _ in found], images)
    write_atomically(options.page, text.encode())


if __name__ == "__main__":
    main()
