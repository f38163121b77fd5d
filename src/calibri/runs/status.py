"""Where a run stands, read from its configuration and journal alone.

Nothing is locked, written or computed, and no torch is loaded: another process may be writing, on
this machine or on another one that shares the folder.
"""

from __future__ import annotations

import datetime
import os
import socket
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from calibri.config import RunConfig, validate_config
from calibri.errors import JournalError
from calibri.results import Checkpoint, Generation, Record, RunPlan
from calibri.runs.folder import Holder, RunFolder
from calibri.runs.journal import NOTE, read_journal
from calibri.search import IMAGES_PER_GRADIENT
from calibri.signatures import typed

State = Literal["running", "silent", "stopped", "finished"]

# Phases of the journal that a plan counts under another name.
_PLANNED_AS = {
    "scales": "search",
    "race": "search",
    "gradient": "search",
    "policy": "search",
    "guidance": "search",
    "shift": "search",
    "diversity": "validation",
}
_RECENT = 60.0
# A process elsewhere that writes nothing for so long is not taken for a running one.
_LEAST_PATIENCE, _PATIENCE = 600.0, 20.0


class RunStatus(Record):
    """Where a run stands.

    Attributes:
        state: ``"running"``; ``"stopped"``, which ``calibri resume`` continues; ``"finished"``; or
            ``"silent"``: a process on another machine says that it works on the run and has
            written nothing for long, so that nobody here can tell.
        known_by: how the state is known, in words.
        phase: of the newest unit that was waited for.
        generations: done.
        generations_planned: budget.
        generation: the newest.
        checkpoint: the newest: what the search has gained on prompts that it never saw.
        images: done by phase.
        images_planned: at most, by phase; empty where the journal does not say.
        images_per_second: over the last minute of computing; None before the first unit.
        workers: images per second of each worker over the same minute, where units say who
            computed them.
        seconds_left: of computing, at the present pace; None where it is not known.
        hours: of computing so far, interruptions excluded.
        device_hours: the same, summed over workers.
        device: kind of device; None where the journal does not say.
        petaflop: so far, counted; None where that is not possible.
        failed_images: images that could not be scored and were left out.
        retries: units that were computed again because a worker was lost, and images that were
            sampled again because a score failed.
        batch_size: images computed at once.
        written: when the newest unit was finished, ISO 8601 in UTC.
        page: address of the page on which a cluster shows the work, while the run goes on.
    """

    name: str
    pipeline: str
    objective: str
    state: State
    known_by: str
    phase: str | None
    generations: int
    generations_planned: int
    generation: Generation | None
    checkpoint: Checkpoint | None
    images: dict[str, int]
    images_planned: dict[str, int]
    images_per_second: float | None
    workers: dict[str, float]
    seconds_left: float | None
    hours: float
    device_hours: float
    device: str | None
    petaflop: float | None
    failed_images: int
    retries: int
    batch_size: int
    written: str | None
    page: str | None


class _Unit(BaseModel):
    """What is needed of the record of a unit."""

    phase: str
    scores: dict[str, Any]
    seconds: float
    at: float | None = None  # journals of before have none of what follows
    worker: str | None = None
    busy: float | None = None
    attempts: int = 1
    retried: int = 0
    batch_size: int | None = None
    ahead: bool = False

    @property
    def planned_as(self) -> str:
        return _PLANNED_AS.get(self.phase, self.phase)

    @property
    def images(self) -> int:
        scores: Any = next(iter(self.scores.values()), [])
        rows = len(scores) if isinstance(scores, list) else int(scores["shape"][0])
        return rows * (IMAGES_PER_GRADIENT if self.phase == "gradient" else 1)

    @property
    def failed(self) -> int:
        rows = zip(*(s for s in self.scores.values() if isinstance(s, list)), strict=False)
        return sum(None in row for row in rows)


class _Note(BaseModel):
    event: str
    value: dict[str, Any]


@typed
def status(run: Path | str) -> RunStatus:
    """Say where a run stands; it may be running, stopped, killed or finished, here or elsewhere.

    Args:
        run: its folder.

    Raises:
        RunError: there is no such run, or its configuration is damaged or of another version.
        JournalError: its journal is damaged, or written by another version.
    """
    folder = RunFolder.open(Path(run))
    config = validate_config(folder.config)
    # A run that was only just started, or killed right then, has no journal yet.
    path = folder.journal_path
    records = read_journal(path) if path.exists() else ()
    try:
        units = [_Unit.model_validate(r) for r in records if r.get("kind") == "unit"]
        notes = [_Note.model_validate(r) for r in records if r.get("kind") == NOTE]
        return _status(folder, config, units, notes)
    except (ValidationError, LookupError, TypeError, ValueError) as error:
        raise JournalError(
            f"The journal {path} is not damaged, and yet none that this Calibri can read: it was "
            "written by another version, or by hand. Use the Calibri that made the run."
        ) from error


def _status(
    folder: RunFolder, config: RunConfig, units: Sequence[_Unit], notes: Sequence[_Note]
) -> RunStatus:
    plan = _newest(notes, "plan", RunPlan)
    state, known_by = _state(folder, units)
    done, phase = _images(units), _phase(units)
    recent = _recent(units)
    return RunStatus(
        name=folder.path.resolve().name,
        pipeline=config.pipeline,
        objective=config.rewards.objective,
        state=state,
        known_by=known_by,
        phase=phase,
        generations=sum(note.event == "generation" for note in notes),
        generations_planned=plan.generations if plan else config.search.generations,
        generation=_newest(notes, "generation", Generation),
        checkpoint=_newest(notes, "checkpoint", Checkpoint),
        images=done,
        images_planned=plan.images if plan else {},
        images_per_second=_pace(recent),
        workers=_by_worker(recent),
        seconds_left=0.0 if state == "finished" else _left(config, plan, done, recent, phase),
        hours=sum(unit.seconds for unit in units) / 3600,
        device_hours=sum(unit.busy or unit.seconds for unit in units) / 3600,
        device=plan.device if plan else None,
        petaflop=_petaflop(plan, done),
        failed_images=sum(unit.failed for unit in units),
        retries=sum(unit.attempts - 1 + unit.retried for unit in units),
        batch_size=_batch_size(units, config.sampling.batch_size),
        written=_iso(units[-1].at) if units else None,
        page=_page(notes) if state in ("running", "silent") else None,
    )


def _newest(notes: Sequence[_Note], event: str, kind: type[Any]) -> Any:
    values = [note.value for note in notes if note.event == event]
    return kind.model_validate(values[-1]) if values else None


def _page(notes: Sequence[_Note]) -> str | None:
    urls = [str(note.value["url"]) for note in notes if note.event == "page"]
    return urls[-1] if urls else None


def _state(folder: RunFolder, units: Sequence[_Unit]) -> tuple[State, str]:
    holder = folder.holder
    if folder.is_finished:
        return "finished", "its results are there"
    if holder is None:
        return "stopped", "no process works on it"
    if holder.host == socket.gethostname() and os.name == "posix":
        if _is_alive(holder.pid):
            return "running", f"process {holder.pid} works on it"
        return "stopped", f"process {holder.pid}, which worked on it, is gone"
    return _elsewhere(holder, folder, units)


def _elsewhere(holder: Holder, folder: RunFolder, units: Sequence[_Unit]) -> tuple[State, str]:
    """Judge by its last sign of life a process that cannot be looked at from here."""
    signs = [folder.config_path, folder.journal_path]
    quiet = max(0.0, time.time() - max(p.stat().st_mtime for p in signs if p.exists()))
    patience = max(_LEAST_PATIENCE, _PATIENCE * max((u.seconds for u in units), default=0.0))
    who = f"process {holder.pid} on host {holder.host!r}"
    if quiet <= patience:
        return "running", f"{who} wrote {quiet:.0f} seconds ago"
    return "silent", f"{who} says that it works on it, and wrote nothing for {quiet:.0f} seconds"


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)  # sends nothing
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _phase(units: Sequence[_Unit]) -> str | None:
    """Where the run is: workers that would idle compute units of later phases before."""
    return next((unit.planned_as for unit in reversed(units) if not unit.ahead), None)


def _images(units: Sequence[_Unit]) -> dict[str, int]:
    found: Counter[str] = Counter()
    for unit in units:
        found[unit.planned_as] += unit.images
    return dict(found)


def _recent(units: Sequence[_Unit]) -> list[_Unit]:
    """Units of the last minute of computing, at least one."""
    seconds, found = 0.0, []
    for unit in reversed(units):
        found.append(unit)
        seconds += unit.seconds
        if seconds >= _RECENT:
            break
    return found


def _pace(units: Sequence[_Unit]) -> float | None:
    seconds = sum(unit.seconds for unit in units)
    return sum(unit.images for unit in units) / seconds if seconds else None


def _by_worker(units: Sequence[_Unit]) -> dict[str, float]:
    seconds = sum(unit.seconds for unit in units)
    found: defaultdict[str, int] = defaultdict(int)
    for unit in units:
        if unit.worker is not None:
            found[unit.worker] += unit.images
    return {worker: found[worker] / seconds for worker in sorted(found)} if seconds else {}


def _left(
    config: RunConfig,
    plan: RunPlan | None,
    done: Mapping[str, int],
    recent: Sequence[_Unit],
    phase: str | None,
) -> float | None:
    """Estimate from the recent pace, in work rather than images: final figures take more steps."""
    cost = _costs(config, plan)
    work = sum(unit.images * cost.get(unit.planned_as, 1.0) for unit in recent)
    if plan is None or not work:
        return None
    # A search may end before its budget, and its images are counted at most.
    phases = ["evaluation"] if phase == "evaluation" else list(plan.images)
    left = sum(
        max(0, plan.images.get(name, 0) - done.get(name, 0)) * cost.get(name, 1.0)
        for name in phases
    )
    return left * sum(unit.seconds for unit in recent) / work


def _costs(config: RunConfig, plan: RunPlan | None) -> Mapping[str, float]:
    if plan is not None and plan.teraflop:
        return plan.teraflop
    steps = config.evaluation.step_multiples_sampled
    return {"evaluation": sum(steps) / len(steps)}


def _petaflop(plan: RunPlan | None, done: Mapping[str, int]) -> float | None:
    if plan is None or any(phase not in plan.teraflop for phase in done):
        return None
    return sum(images * plan.teraflop[phase] for phase, images in done.items()) / 1e3


def _batch_size(units: Sequence[_Unit], configured: int) -> int:
    return min([configured, *(unit.batch_size for unit in units if unit.batch_size)])


def _iso(at: float | None) -> str | None:
    if at is None:
        return None
    moment = datetime.datetime.fromtimestamp(at, datetime.timezone.utc)
    return moment.isoformat(timespec="seconds")
