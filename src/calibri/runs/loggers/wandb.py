"""Log a run to Weights & Biases, online or offline as ``WANDB_MODE`` says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import wandb

from calibri.results import RunSummary
from calibri.runs.loggers.metrics import MetricsLogger


class WeightsAndBiases(MetricsLogger):
    """One run of the project ``calibri`` (``WANDB_PROJECT``); one more where a run is resumed."""

    _run: Any = None
    _is_finished = False

    def begin(self, run: Path, settings: Mapping[str, object]) -> None:
        """Start a run in the group that is called like ours."""
        project = wandb.setup().settings.project or "calibri"
        self._run = wandb.init(
            project=project, name=run.name, group=run.name, dir=str(run), config=dict(settings)
        )
        self._run.define_metric("*", step_metric="generation")

    def log(self, values: Mapping[str, float], generation: int) -> None:
        """Send numbers over generations: a checkpoint belongs to one that is logged already."""
        self._run.log({**values, "generation": generation})

    def finish(self, summary: RunSummary) -> None:
        """Send the final figures and the verdict."""
        super().finish(summary)
        self._run.summary["verdict"] = summary.verdict
        self._is_finished = True

    def end(self) -> None:
        """Wait until all is sent."""
        if self._run is not None:
            self._run.finish(exit_code=0 if self._is_finished else 1)
