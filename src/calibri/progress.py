"""What a run tells those who watch it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from calibri.results import Checkpoint, Computed, Generation, RunPlan, RunSummary


class Progress:
    """Receives the events of a run; this one ignores them all.

    A run that is resumed tells everything again from its start, as it reads it from the journal.
    """

    def begin(self, run: Path, settings: Mapping[str, object]) -> None:
        """A run begins or goes on.

        Args:
            run: its folder.
            settings: its configuration as plain values, without secrets.
        """

    def planned(self, plan: RunPlan) -> None:
        """A run knows what it will do: at its start, and again once measuring changed it."""

    def phase(self, name: str, images: int) -> None:
        """A part of the run begins that will sample this many images."""

    def unit(self, images: int, new: bool) -> None:
        """A unit is scored; ``new`` is False when it came from the journal."""

    def worked(self, unit: Computed) -> None:
        """How a new unit was computed; told after ``unit``, or before where it was not due yet."""

    def generation(self, generation: Generation) -> None:
        """A generation of the search is complete."""

    def checkpoint(self, checkpoint: Checkpoint) -> None:
        """A result of the search so far was validated."""

    def message(self, text: str) -> None:
        """Something a person should read."""

    def page(self, url: str) -> None:
        """A cluster shows the work of the run on a page of its own, until the run ends."""

    def finish(self, summary: RunSummary) -> None:
        """The run has its results."""

    def end(self) -> None:
        """Nothing more will be told: the run is finished, was stopped or failed."""


class Together(Progress):
    """Passes every event on to several watchers, in their order."""

    def __init__(self, watchers: Sequence[Progress]) -> None:
        self._watchers = list(watchers)

    def _tell(self, event: str, *what: object) -> None:
        for watcher in self._watchers:
            getattr(watcher, event)(*what)

    def begin(self, run: Path, settings: Mapping[str, object]) -> None:
        """Pass it on."""
        self._tell("begin", run, settings)

    def planned(self, plan: RunPlan) -> None:
        """Pass it on."""
        self._tell("planned", plan)

    def phase(self, name: str, images: int) -> None:
        """Pass it on."""
        self._tell("phase", name, images)

    def unit(self, images: int, new: bool) -> None:
        """Pass it on."""
        self._tell("unit", images, new)

    def worked(self, unit: Computed) -> None:
        """Pass it on."""
        self._tell("worked", unit)

    def generation(self, generation: Generation) -> None:
        """Pass it on."""
        self._tell("generation", generation)

    def checkpoint(self, checkpoint: Checkpoint) -> None:
        """Pass it on."""
        self._tell("checkpoint", checkpoint)

    def message(self, text: str) -> None:
        """Pass it on."""
        self._tell("message", text)

    def page(self, url: str) -> None:
        """Pass it on."""
        self._tell("page", url)

    def finish(self, summary: RunSummary) -> None:
        """Pass it on."""
        self._tell("finish", summary)

    def end(self) -> None:
        """Pass it on."""
        self._tell("end")
