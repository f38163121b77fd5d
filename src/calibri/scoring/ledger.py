"""Finished units, found again by what decided them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from calibri.arrays import Vector
from calibri.errors import JournalError, RunError
from calibri.results import FEATURES
from calibri.scoring.plain_json import decode, decode_exact, encode_exact
from calibri.scoring.units import Unit

# Phase, step and number of a unit.
Key = tuple[str, int, int]


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
    """Finished units by (phase, step, unit), kept in a journal.

    Args:
        journal: keeps them, and has those of before.

    Raises:
        JournalError: a record is intact and yet no record of a unit.
    """

    def __init__(self, journal: Records) -> None:
        self._journal = journal
        self._units = {_key_of(r): r for r in journal.records if r.get("kind") == "unit"}
        self._vectors = {
            (r.get("name"), r.get("step")): r.get("vectors")
            for r in journal.records
            if r.get("kind") == "vectors"
        }

    def find(self, key: Key, unit: Unit) -> Mapping[str, Any] | None:
        """Return the record of a finished unit, or None when it must be computed.

        Raises:
            RunError: the journal holds another unit under this key.
            JournalError: it does not hold what a unit gives.
        """
        record = self._units.get(key)
        if record is None:
            return None
        if record["digest"] != unit.digest:
            raise RunError(
                f"The journal's unit {key} was made for other candidates, prompts or settings. "
                "This run was started by another version of Calibri or of its libraries, or its "
                "configuration was edited. Start a new run."
            )
        _check_result(key, record, unit)
        return record

    def pin(self, name: str, step: int, vectors: Sequence[Vector]) -> list[Vector]:
        """Keep vectors that are to be scored, or give those that were kept before.

        Linear algebra differs in its last bits, and eigenvectors in their signs, from one processor
        and library to another. A search that is repeated from a journal takes what was asked from
        there, so that it never depends on them.

        Args:
            name: what they are for.
            step: number within that.
            vectors: as they were computed now, float64 (n,) each.

        Raises:
            JournalError: what was kept is no such vectors.
        """
        stored = self._vectors.get((name, step))
        if stored is None:
            table = np.asarray(vectors, dtype=np.float64)
            entry = {"kind": "vectors", "name": name, "step": step, "vectors": encode_exact(table)}
            self._journal.append(entry)
            self._vectors[name, step] = entry["vectors"]
            return list(vectors)
        try:
            table = decode_exact(stored)
        except (KeyError, TypeError, ValueError) as error:
            raise _wrong((name, step), "it holds no vectors") from error
        if table.shape != np.shape(vectors) or not np.isfinite(table).all():
            raise _wrong((name, step), f"it does not hold {len(vectors)} vectors")
        return list(table)

    def add(self, key: Key, record: Mapping[str, Any]) -> None:
        """Keep a finished unit."""
        phase, step, unit = key
        entry = {"kind": "unit", "phase": phase, "step": step, "unit": unit, **record}
        self._journal.append(entry)
        self._units[key] = entry


def _key_of(record: Mapping[str, Any]) -> Key:
    phase, step, unit = (record.get(name) for name in ("phase", "step", "unit"))
    if not (isinstance(phase, str) and isinstance(step, int) and isinstance(unit, int)):
        raise _wrong(f"of phase {phase!r}, step {step!r} and number {unit!r}", "these are no key")
    if not isinstance(record.get("digest"), str):
        raise _wrong((phase, step, unit), "it has no digest")
    return phase, step, unit


def _check_result(key: Key, record: Mapping[str, Any], unit: Unit) -> None:
    seconds = record.get("seconds")
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise _wrong(key, "it does not say how long it took")
    for name in unit.measures:
        _check_scores(key, record, name, len(unit.rows))
        if unit.kind == "gradients":
            _check_gradients(key, record, name, len(unit.rows))
        elif unit.kind == "policy":
            _check_gradient(key, record, name)


def _check_scores(key: Key, record: Mapping[str, Any], name: str, rows: int) -> None:
    try:
        stored = record["scores"][name]
        scores = decode(stored)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise _wrong(key, f"it has no scores of '{name}'") from error
    axes = 1 if isinstance(stored, list) and name != FEATURES else 2
    if scores.dtype != np.float64 or scores.ndim != axes or len(scores) != rows:
        raise _wrong(key, f"its scores of '{name}' are not {rows}")


def _check_gradient(key: Key, record: Mapping[str, Any], name: str) -> None:
    try:
        finite = np.isfinite(np.array(record["gradients"][name], dtype=np.float64)).all()
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise _wrong(key, f"it has no gradient of '{name}'") from error
    if not finite:
        raise _wrong(key, f"its gradient of '{name}' is not finite")


def _check_gradients(key: Key, record: Mapping[str, Any], name: str, rows: int) -> None:
    try:
        gradients = decode_exact(record["gradients"][name])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise _wrong(key, f"it has no gradients of '{name}'") from error
    if gradients.ndim < 2 or len(gradients) != rows or not np.isfinite(gradients).all():
        raise _wrong(key, f"its gradients of '{name}' are not {rows}, or not finite")


def _wrong(key: object, what: str) -> JournalError:
    return JournalError(
        f"The journal's unit {key} is not damaged, and yet none of ours: {what}. It was written by "
        "another version of Calibri, or by hand. Restore the journal, or start a new run."
    )
