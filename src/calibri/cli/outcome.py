"""Watch a run to its end, write its report and say what came of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rich.text import Text

from calibri.cli.display import command, loading, out, say, show_evaluation, verbatim
from calibri.cli.progress import watching
from calibri.cli.tally import Tally
from calibri.progress import Progress
from calibri.results import RunSummary

if TYPE_CHECKING:
    from calibri.config import RunConfig

EXAMPLE_PROMPT = "a red circle above a blue square"


def run_with_progress(
    path: Path, config: RunConfig, work: Callable[[Progress], RunSummary]
) -> None:
    """Run ``work`` under a progress display, then print its outcome and what to do next.

    Args:
        path: folder of the run.
        config: its configuration.
        work: does the run, given whom to tell.
    """
    from calibri import report

    with watching(
        tally_of(config),
        objective=config.rewards.objective,
        generations=config.search.generations,
        run=str(path),
        loading=f"Loading {config.pipeline}",
    ) as progress:
        summary = work(progress)
    with loading("Drawing the report"):
        written = report(path)
    show_outcome(path, summary, written)


def tally_of(config: RunConfig) -> Tally:
    """Prepare the estimate of the time left: the evaluation's images take more steps each."""
    evaluation = config.evaluation
    settings = [*evaluation.calibrated_multiples, *evaluation.original_multiples]
    images = len(settings) * evaluation.num_prompts * evaluation.images_per_prompt
    cost = sum(settings) / len(settings)
    return Tally({"evaluation": images}, {"evaluation": cost, "samples": cost})


def show_outcome(path: Path, summary: RunSummary, report: Path) -> None:
    """Print the verdict, the figures, where everything is, and the next commands."""
    console = out()
    console.print()
    say(console, Text(summary.verdict, style="bold"))
    if summary.evaluation is not None:
        show_evaluation(console, summary.evaluation)
    calibration = path / "calibration"
    prompt = summary.samples[0].prompt if summary.samples else EXAMPLE_PROMPT
    console.print()
    verbatim(console, f"calibration  {calibration}")
    verbatim(console, f"report       {report}")
    console.print()
    say(console, Text("Next", style="bold"))
    verbatim(console, "  " + _generate(summary.pipeline, calibration, prompt))
    verbatim(console, "  " + command("calibri", "report", path))
    console.print()
    say(console, Text("In Python, on a pipeline that is already loaded", style="bold"))
    verbatim(console, "  import calibri")
    verbatim(console, f"  calibri.load(pipe, {str(calibration)!r})")


def _generate(pipeline: str, calibration: Path, prompt: str) -> str:
    return command(
        "calibri", "generate", pipeline, "--calibration", calibration, "--compare", prompt
    )
