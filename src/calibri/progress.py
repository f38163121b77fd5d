"""What a running command tells its watcher."""

from __future__ import annotations

from collections.abc import Sequence

from calibri.results import Checkpoint, Computed, Generation, RunPlan


class Progress:
    """Receives the events of a run; this one ignores them all."""

    def planned(self, plan: RunPlan) -> None:
        """A run knows what it will do: at its start, and again once measuring changed it."""

    def phase(self, name: str, images: int) -> None:
        """A part of the run begins that will sample this many images."""

    def unit(self, images: int, new: bool) -> None:
        """A unit is scored; ``new`` is False when it came from the journal."""

    def worked(self, unit: Computed) -> None:
        """How a new unit was computed; told after ``unit``."""

    def generation(self, generation: Generation) -> None:
        """A generation of the search is complete."""

    def checkpoint(self, checkpoint: Checkpoint) -> None:
        """A result of the search so far was validated."""

    def message(self, text: str) -> None:
        """Something a person should read."""


class Together(Progress):
    """Passes every event on to several watchers, in their order."""

    def __init__(self, watchers: Sequence[Progress]) -> None:
        self._watchers = watchers

    def planned(self, plan: RunPlan) -> None:
        """Pass it on."""
        for watcher in self._watchers:
            watcher.planned(plan)

    def phase(self, name: str, images: int) -> None:
        """Pass it on."""
        for watcher in self._watchers:
            watcher.phase(name, images)

    def unit(self, images: int, new: bool) -> None:
        """Pass it on."""
        for watcher in self._watchers:
            watcher.unit(images, new)

    def worked(self, unit: Computed) -> None:
        """Pass it on."""
        for watcher in self._watchers:
            watcher.worked(unit)

    def generation(self, generation: Generation) -> None:
        """Pass it on."""
        for watcher in self._watchers:
            watcher.generation(generation)

    def checkpoint(self, checkpoint: Checkpoint) -> None:
        """Pass it on."""
        for watcher in self._watchers:
            watcher.checkpoint(checkpoint)

    def message(self, text: str) -> None:
        """Pass it on."""
        for watcher in self._watchers:
            watcher.message(text)
