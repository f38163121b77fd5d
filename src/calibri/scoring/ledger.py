"""Finished units, found again by what decided them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from calibri.errors import RunError


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
