"""Log a run to TensorBoard, into ``tensorboard/`` of its folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from calibri.runs.loggers.metrics import MetricsLogger


class TensorBoard(MetricsLogger):
    """Look at it with ``tensorboard --logdir runs``."""

    _writer: SummaryWriter | None = None

    def begin(self, run: Path, settings: Mapping[str, object]) -> None:
        """Start a file; what it repeats of earlier ones is hidden there."""
        self._writer = SummaryWriter(str(run / "tensorboard"), purge_step=0)
        text = json.dumps(settings, indent=2)
        self._writer.add_text("settings", "".join(f"    {line}\n" for line in text.splitlines()))

    def log(self, values: Mapping[str, float], generation: int) -> None:
        """Write and flush, so that a page shows it at once."""
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, generation)
            self._writer.flush()

    def end(self) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()
