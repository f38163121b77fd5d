"""What a running command tells its watcher."""

from __future__ import annotations

from calibri.results import Checkpoint, Generation


class Progress:
    """Receives the events of a run; this one ignores them all."""

    def phase(self, name: str, images: int) -> None:
        """A part of the run begins that will sample this many images."""

    def unit(self, images: int, new: bool) -> None:
        """A unit is scored; ``new`` is False when it came from the journal."""

    def generation(self, generation: Generation) -> None:
        """A generation of the search is complete."""

    def checkpoint(self, checkpoint: Checkpoint) -> None:
        """A result of the search so far was validated."""

    def message(self, text: str) -> None:
        """Something a person should read."""
