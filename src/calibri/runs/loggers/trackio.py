"""Log a run to trackio, on this machine or wherever ``TRACKIO_SPACE_ID`` says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import trackio

from calibri.runs.loggers.metrics import MetricsLogger


class Trackio(MetricsLogger):
    """One run of the project ``calibri``; one more where a run is resumed."""

    _run: Any = None

    def begin(self, run: Path, settings: Mapping[str, object]) -> None:
        """Start a run that is called like ours."""
        self._run = trackio.init(project="calibri", name=run.name, config=dict(settings))

    def log(self, values: Mapping[str, float], generation: int) -> None:
        """Send numbers of a generation."""
        self._run.log(dict(values), step=generation)

    def end(self) -> None:
        """Wait until all is written."""
        if self._run is not None:
            self._run.finish()
