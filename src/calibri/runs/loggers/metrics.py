"""The events of a run as named numbers, the same for every tracker."""

from __future__ import annotations

from collections.abc import Mapping

from calibri.progress import Progress
from calibri.results import Checkpoint, Evaluation, Figure, Generation, RunSummary


class MetricsLogger(Progress):
    """Turns generations, checkpoints and final figures into numbers by name and generation."""

    def __init__(self) -> None:
        self._images, self._seconds = 0, 0.0
        self._generations = 0

    def log(self, values: Mapping[str, float], generation: int) -> None:
        """Keep numbers of a generation, which count from 1."""
        raise NotImplementedError

    def generation(self, generation: Generation) -> None:
        """Log where the search is, and how fast."""
        self._generations = generation.generation + 1
        images, seconds = generation.images - self._images, generation.seconds - self._seconds
        self._images, self._seconds = generation.images, generation.seconds
        values = {
            "search/mean": generation.mean,
            "search/best": generation.best,
            "search/original": generation.baseline,
            "search/difference": generation.mean - generation.baseline,
            "search/sigma": generation.sigma,
            "search/images": float(generation.images),
        }
        speed = {"search/images per second": images / seconds} if seconds > 0 else {}
        self.log(values | speed, self._generations)

    def checkpoint(self, checkpoint: Checkpoint) -> None:
        """Log what the search has gained on prompts that it never saw."""
        values = _figure("validation/difference", checkpoint.difference)
        for reward, figure in checkpoint.held_out.items():
            values |= _figure(f"validation/{reward}", figure)
        self.log(values, checkpoint.generation + 1)

    def finish(self, summary: RunSummary) -> None:
        """Log the final figures."""
        if summary.evaluation is not None:
            self.log(_compared(summary.evaluation), self._generations)


def _figure(name: str, figure: Figure) -> dict[str, float]:
    return {name: figure.mean, f"{name} low": figure.low, f"{name} high": figure.high}


def _compared(evaluation: Evaluation) -> dict[str, float]:
    values: dict[str, float] = {}
    for comparison in evaluation.comparisons:
        name = f"evaluation/{comparison.reward} against {comparison.against}"
        values |= _figure(name, comparison.difference)
    return values
