"""What a run notes beside its units, for whoever looks at it while it runs or later.

Notes decide nothing: resuming never reads them, and a journal without them is as good. Each is
written once, however often the events behind it are replayed.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping

from calibri.config import RunConfig
from calibri.planning import image_teraflop
from calibri.progress import Progress
from calibri.results import Checkpoint, Generation, Record, RunPlan
from calibri.runs.journal import NOTE
from calibri.runs.session import Session
from calibri.scoring import Records


class JournalNotes(Progress):
    """Notes plans, generations and checkpoints in the journal of a run.

    Args:
        journal: of the run; what is noted there already is not noted again.
    """

    def __init__(self, journal: Records) -> None:
        self._journal = journal
        notes = [record for record in journal.records if record.get("kind") == NOTE]
        self._known = {(note.get("event"), note.get("step")) for note in notes}
        self._plans = [note.get("value") for note in notes if note.get("event") == "plan"]

    def planned(self, plan: RunPlan) -> None:
        """Note a plan that is new."""
        value = plan.model_dump(mode="json")
        if value not in self._plans:
            self._plans.append(value)
            self._write("plan", None, value)

    def page(self, url: str) -> None:
        """Note where a cluster shows the work."""
        self._write("page", None, {"url": url})

    def generation(self, generation: Generation) -> None:
        """Note a generation."""
        self._once("generation", generation.generation, generation)

    def checkpoint(self, checkpoint: Checkpoint) -> None:
        """Note what a validation found."""
        self._once("checkpoint", checkpoint.generation, checkpoint)

    def _once(self, event: str, step: int, value: Record) -> None:
        if (event, step) not in self._known:
            self._known.add((event, step))
            self._write(event, step, value.model_dump(mode="json"))

    def _write(self, event: str, step: int | None, value: Mapping[str, object]) -> None:
        self._journal.append(
            {
                "kind": NOTE,
                "event": event,
                "step": step,
                "at": round(time.time(), 3),
                "value": value,
            }
        )


def plan_of(session: Session, images: Mapping[str, int], config: RunConfig) -> RunPlan:
    """Say what a run sets out to do.

    Args:
        session: what it searches.
        images: phase to images, at most.
        config: how it goes on: the session's, or what measuring first made of it.
    """
    return RunPlan(
        device=session.bench.device.type,
        parameters=session.space.size,
        generations=config.search.generations,
        images=dict(images),
        teraflop=_teraflop(config, tuple(images)) if session.bench.is_configured else {},
    )


def _teraflop(config: RunConfig, phases: tuple[str, ...]) -> dict[str, float]:
    # No run may end of what is only said: whatever cannot be counted is left out.
    with contextlib.suppress(Exception), _without_chatter():
        return image_teraflop(config, phases)
    return {}


@contextlib.contextmanager
def _without_chatter() -> Iterator[None]:
    """Keep diffusers from saying once more what it had to say of a configuration."""
    logger = logging.getLogger("diffusers.configuration_utils")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before
