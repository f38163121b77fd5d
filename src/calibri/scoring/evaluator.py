"""Score candidates on (prompt, seed) pairs, unit by unit.

A unit mixes rows of several candidates in one batch and is the grain of the journal: a unit found
there is never computed again, so an interrupted run and an undisturbed one end the same, whatever
the number of workers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from calibri.arrays import Scores
from calibri.coefficients import Coefficients
from calibri.errors import NothingScoredError, RewardError, RunError
from calibri.results import FULL, Fidelity
from calibri.sampling import Noise
from calibri.scoring.units import Backend, Measure, Unit, cut, decode, make_unit

# Told of every finished unit: its images, and whether they are new.
OnUnit = Callable[[int, bool], None]


def ignore(images: int, new: bool) -> None:
    """Do nothing when a unit is finished."""


class Records(Protocol):
    """What the ledger needs of a journal."""

    @property
    def records(self) -> Sequence[Mapping[str, Any]]:
        """Everything appended so far."""
        ...

    def append(self, record: Mapping[str, Any]) -> None:
        """Keep a record durably."""
        ...


class MemoryRecords:
    """Records that are not kept: for work that is not part of a run."""

    def __init__(self) -> None:
        self.records: list[Mapping[str, Any]] = []

    def append(self, record: Mapping[str, Any]) -> None:
        """Keep a record until the process ends."""
        self.records.append(record)


class Ledger:
    """Finished units by (phase, step, unit), kept in a journal."""

    def __init__(self, journal: Records) -> None:
        self._journal = journal
        self._units = {
            (r["phase"], r["step"], r["unit"]): r for r in journal.records if r["kind"] == "unit"
        }

    def find(self, key: tuple[str, int, int], digest: str) -> Mapping[str, Any] | None:
        """Return a finished unit, or None when it must be computed.

        Raises:
            RunError: the journal holds another unit under this key.
        """
        record = self._units.get(key)
        if record is not None and record["digest"] != digest:
            raise RunError(
                f"The journal's unit {key} was made for other candidates, prompts or settings. "
                "This run was started by another version of Calibri or of its libraries, or its "
                "configuration was edited. Start a new run."
            )
        return record

    def add(self, key: tuple[str, int, int], record: Mapping[str, Any]) -> None:
        """Keep a finished unit."""
        phase, step, unit = key
        entry = {"kind": "unit", "phase": phase, "step": step, "unit": unit, **record}
        self._journal.append(entry)
        self._units[key] = entry


class Evaluator:
    """Scores candidates and keeps the scores.

    Args:
        backend: computes units.
        batch_size: images per unit.
        full: fidelity of images, where ``score`` is told no other.
        ledger: finished units.
        on_unit: called after every unit with the number of its images and whether it was new.

    Attributes:
        images: images scored so far.
        seconds: time that they took, interruptions excluded.
        dropped: (prompt, seed) pairs left out so far because a score failed.
    """

    def __init__(
        self,
        backend: Backend,
        batch_size: int,
        full: Fidelity,
        ledger: Ledger,
        on_unit: OnUnit = ignore,
    ) -> None:
        self._backend = backend
        self._batch_size = batch_size
        self._full = full
        self._ledger = ledger
        self._on_unit = on_unit
        self.images = 0
        self.seconds = 0.0
        self.dropped = 0

    def __enter__(self) -> Evaluator:
        return self

    def __exit__(self, *exc: object) -> None:
        self._backend.close()

    def score(
        self,
        phase: str,
        step: int,
        candidates: Sequence[Coefficients],
        noises: Sequence[Noise],
        measures: Mapping[str, Measure],
        fidelity: Fidelity = FULL,
    ) -> dict[str, Scores]:
        """Sample every candidate on every noise and measure the images.

        Args:
            phase: part of the run, for the journal.
            step: generation or number within the phase.
            candidates: coefficients of one search space; all see the same prompts and noise.
            noises: (prompt, seed) pairs; the images of one prompt stay in one unit when they are
                neighbours here and fit into one.
            measures: name to measure; workers have their own under the same name.
            fidelity: what differs from the full one.

        Returns:
            For each measure, float64 (candidates, noises) or (candidates, noises, D). The columns
            of noises that were dropped are NaN, for all candidates and measures alike.

        Raises:
            RewardError: a measure returned a number that is not finite, and the policy is not to
                drop it; ``NothingScoredError`` when it is, and nothing would be left.
        """
        rows = [(c, noise) for c in range(len(candidates)) for noise in noises]
        units = [
            make_unit(candidates, part, tuple(measures), self._full.updated(fidelity))
            for part in cut(rows, self._batch_size)
        ]
        records = self._records((phase, step), units, measures)
        joined = {
            name: np.concatenate([decode(record["scores"][name]) for record in records])
            for name in measures
        }
        shape = (len(candidates), len(noises))
        tables = {name: v.reshape(*shape, *v.shape[1:]) for name, v in joined.items()}
        dropped = _drop_failed(tables)
        self.dropped += dropped
        if dropped == len(noises):
            raise NothingScoredError(
                f"Each of the {dropped} (prompt, seed) pairs was dropped: some image of every one "
                "of them could not be scored. Check the reward and the pipeline."
            )
        return tables

    def keep(
        self, key: tuple[str, int, int], unit: Unit, compute: Callable[[], dict[str, Any]]
    ) -> Mapping[str, Any]:
        """Find a unit of another kind than scores, or compute it and keep what comes.

        Args:
            key: phase, step and number of the unit.
            unit: what decides the result.
            compute: gives it, as plain JSON.
        """
        record = self._ledger.find(key, unit.digest)
        new = record is None
        if record is None:
            before = time.perf_counter()
            result = compute()
            seconds = time.perf_counter() - before
            record = {"digest": unit.digest, **result, "seconds": seconds}
            self._ledger.add(key, record)
        self._count(unit, record, new=new)
        return record

    def _records(
        self, key: tuple[str, int], units: Sequence[Unit], measures: Mapping[str, Measure]
    ) -> list[Mapping[str, Any]]:
        """Find units in the ledger and compute the others."""
        found = {i: self._ledger.find((*key, i), u.digest) for i, u in enumerate(units)}
        missing = [(i, units[i]) for i, record in found.items() if record is None]
        records = {i: record for i, record in found.items() if record is not None}
        for i, record in records.items():
            self._count(units[i], record, new=False)
        before = time.perf_counter()
        for i, scores in self._backend.run(missing, measures):
            now = time.perf_counter()
            records[i] = {"digest": units[i].digest, "scores": scores, "seconds": now - before}
            before = now
            self._ledger.add((*key, i), records[i])
            self._count(units[i], records[i], new=True)
        return [records[i] for i in range(len(units))]

    def _count(self, unit: Unit, record: Mapping[str, Any], *, new: bool) -> None:
        self.images += len(unit.rows)
        self.seconds += float(record["seconds"])
        self._on_unit(len(unit.rows), new)


def _drop_failed(tables: Mapping[str, Scores]) -> int:
    """Blank every noise that failed for any candidate, so that no candidate gains by it."""
    finite = np.stack([np.isfinite(v).reshape(*v.shape[:2], -1).all(2) for v in tables.values()])
    columns = np.asarray(~finite.all(axis=(0, 1)))
    for values in tables.values():
        values[:, columns] = np.nan
    return int(columns.sum())


def complete(*tables: Scores) -> list[Scores]:
    """Keep the prompts for which nothing was dropped in any of some paired tables.

    Args:
        tables: scores, (prompts,) or (prompts, images_per_prompt).

    Raises:
        RewardError: fewer than two prompts are left, too few for an interval.
    """
    keep = np.all([np.isfinite(t).reshape(len(t), -1).all(axis=1) for t in tables], axis=0)
    if keep.sum() < 2:
        raise RewardError(
            f"After dropping images that could not be scored, {int(keep.sum())} of {len(keep)} "
            "prompts are left; figures need at least 2. Check the reward and the pipeline."
        )
    return [table[keep] for table in tables]
