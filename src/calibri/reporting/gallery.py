"""Several calibrations on one page: what each is for, what it gains, and its pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from calibri.artifact import Calibration
from calibri.errors import ConfigError, RunError
from calibri.files import write_atomically
from calibri.reporting.context import KeyNumber, Row, gain_numbers, sample_rows
from calibri.reporting.page import environment, sample_images
from calibri.results import RunSummary
from calibri.runs import RunFolder
from calibri.signatures import typed

# Rows of pictures of each: a page of many stays small enough to send.
_ROWS = 4


@dataclass(frozen=True)
class Entry:
    """A calibration as the page shows it.

    Attributes:
        model: the base model.
        facts: what it is, name to value.
        gains: on held-out prompts, at its own steps.
        rows: pictures.
        snippet: the line that loads it.
    """

    model: str
    facts: dict[str, str]
    gains: list[KeyNumber]
    rows: list[Row]
    snippet: str


@typed
def gallery(
    calibrations: Sequence[str | Path],
    *,
    output: str | Path = Path("gallery.html"),
    title: str = "Calibrations",
) -> Path:
    """Show several calibrations on one self-contained page.

    Args:
        calibrations: finished runs, which have pictures, calibration folders, or repository ids.
        output: file to write, over one that is there.
        title: of the page.

    Returns:
        The file.

    Raises:
        ConfigError: there is no calibration to show.
        CalibrationError: one of them cannot be read.
        RunError: a run is not finished, or the file cannot be written.
    """
    if not calibrations:
        raise ConfigError("A gallery needs at least one calibration. Name a run or a folder.")
    entries = [_entry(str(source)) for source in calibrations]
    write_atomically(Path(output), render_gallery(entries, title).encode())
    return Path(output)


def render_gallery(entries: Sequence[Entry], title: str) -> str:
    """Draw the page; every text in it is escaped."""
    template = environment().get_template("gallery.html.jinja")
    return template.render(entries=entries, title=title)


def _entry(source: str) -> Entry:
    calibration = Calibration.from_pretrained(source)
    evaluation, sampling = calibration.evaluation, calibration.sampling
    coefficients = calibration.coefficients
    guidance = max(sampling.guidance_scale, sampling.true_cfg_scale)
    facts = {
        "Steps": str(sampling.num_inference_steps),
        "Guidance": f"{guidance:g}",
        "Scalars": f"{sum(map(len, coefficients.scales))} by {coefficients.granularity}",
        "Optimised": calibration.objective,
    }
    if sampling.width and sampling.height:
        facts["Size"] = f"{sampling.width} \N{MULTIPLICATION SIGN} {sampling.height}"
    if calibration.lora is not None:
        facts["On top of"] = calibration.lora
    return Entry(
        model=calibration.base_model,
        facts=facts,
        gains=gain_numbers(evaluation) if evaluation else [],
        rows=_rows(Path(source)),
        snippet=f"calibri.load(pipe, {json.dumps(source, ensure_ascii=False)})",
    )


def _rows(folder: Path) -> list[Row]:
    """Find the pictures of a run; its calibration folder is as good as itself."""
    for path in (folder, folder.resolve().parent):
        summary = _summary(path)
        if summary is not None:
            images = sample_images(path / "images", summary)
            return sample_rows(summary, images)[:_ROWS]
    return []


def _summary(path: Path) -> RunSummary | None:
    try:
        return RunFolder.open(path).read_results()
    except RunError:  # no run, or one that cannot be read: there are no pictures
        return None
