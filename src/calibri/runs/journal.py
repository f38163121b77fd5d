"""The append-only journal of a run: the only state that resuming needs.

A record is one line, ``{length:08x} {crc32:08x} {json}``: the length of the JSON in bytes and its
checksum, then the JSON, compact and in UTF-8. JSON has no raw newlines, so a newline ends a record.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
import zlib
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from calibri.errors import JournalError, RunError
from calibri.files import fsync_folder, plain_words, write_all

# Lower case only: int(text, 16) would let some flipped bits of a header pass.
_HEADER = re.compile(rb"([0-9a-f]{8}) ([0-9a-f]{8}) ")
_ANY_HEADER = re.compile(rb"(?=[0-9a-f]{8} [0-9a-f]{8} )")

RESUME = "calibri resume"

NOTE = "note"
"""Kind of records that decide nothing (``calibri.runs.notes``)."""


class _Content(NamedTuple):
    records: list[dict[str, object]]
    length: int  # bytes of valid records; what follows is a torn last record


def _frame(record: Mapping[str, object], path: Path) -> bytes:
    try:
        text = json.dumps(
            dict(record), ensure_ascii=False, allow_nan=False, separators=(",", ":")
        ).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise RunError(
            f"The record cannot be kept in {path}: {error}. Records hold finite numbers, text, "
            "lists and mappings only."
        ) from error
    return b"%08x %08x %s\n" % (len(text), zlib.crc32(text), text)


def _record_at(data: bytes, offset: int) -> tuple[dict[str, object], int] | None:
    """Read the record at an offset and where it ends, or None when it is not whole and intact."""
    header = _HEADER.match(data, offset)
    if header is None:
        return None
    end = header.end() + int(header[1], 16)
    text = data[header.end() : end]
    if data[end : end + 1] != b"\n" or zlib.crc32(text) != int(header[2], 16):
        return None
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return (record, end + 1) if isinstance(record, dict) else None


def _record_begins_after(data: bytes, offset: int) -> bool:
    """Tell damage in the middle from a torn last record: only the former has a record after it.

    A header at the start of a line counts even if its record is broken too: one crash tears one
    record. Anywhere else it counts if its record is intact, since the newline may be what broke.
    """
    starts = (match.start() for match in _ANY_HEADER.finditer(data, offset + 1))
    return any(
        data[start - 1 : start] == b"\n" or _record_at(data, start) is not None for start in starts
    )


def _parse(data: bytes, path: Path, again: str = RESUME) -> _Content:
    records: list[dict[str, object]] = []
    offset = 0
    while offset < len(data):
        found = _record_at(data, offset)
        if found is not None:
            records.append(found[0])
            offset = found[1]
        elif _record_begins_after(data, offset):
            raise JournalError(
                f"{path} is damaged: record {len(records) + 1}, at byte {offset}, does not match "
                "its length and checksum, and more records follow it. Restore the file from a "
                f"backup, or copy it and keep only the {len(records)} records before the damage "
                f"with `truncate -s {offset} {path}`; `{again}` computes the rest again."
            )
        else:
            break
    return _Content(records, offset)


def _open_file(path: Path, flags: int) -> int:
    # O_NOFOLLOW: appending through a link would write outside the run folder. O_NONBLOCK: opening a
    # named pipe would wait for ever; regular files ignore it.
    fd = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return fd
    os.close(fd)
    raise RunError(f"{path} is not a regular file, so it cannot be a journal. Move it away.")


def _read_all(fd: int) -> bytes:
    with os.fdopen(os.dup(fd), "rb") as file:
        return file.read()


def _cannot_open(path: Path, error: OSError) -> RunError:
    return RunError(f"Could not open the journal {path}: {plain_words(error)}.")


def read_journal(path: Path) -> tuple[dict[str, object], ...]:
    """Read all whole records without changing the file; safe while another process appends.

    Raises:
        JournalError: the file is damaged somewhere else than in a torn last record.
        RunError: the file is missing, a link, or cannot be read.
    """
    try:
        fd = _open_file(path, os.O_RDONLY)
        try:
            data = _read_all(fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise _cannot_open(path, error) from error
    return tuple(_parse(data, path).records)


class Journal:
    """A journal open for appending, by one writer at a time: hold ``RunFolder.lock``.

    Attributes:
        path: the file.
        dropped_bytes: size of the torn last record that opening removed; 0 after a clean stop.
    """

    def __init__(
        self, path: Path, fd: int, content: _Content, dropped_bytes: int, again: str = RESUME
    ) -> None:
        self.path = path
        self.dropped_bytes = dropped_bytes
        self._fd: int | None = fd
        self._again = again
        self._records = content.records
        self._length = content.length

    @classmethod
    def open(cls, path: Path, again: str = RESUME) -> Journal:
        """Open or create a journal, verify every record and cut off a torn last one.

        Args:
            path: the file.
            again: the command that goes on with what it belongs to.

        Raises:
            JournalError: damage anywhere else; says which record, at which byte, and what to do.
            RunError: the file is a link, or cannot be opened or created.
        """
        try:
            fd = _open_file(path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
        except OSError as error:
            raise _cannot_open(path, error) from error
        try:
            data = _read_all(fd)
            content = _parse(data, path, again)
            fsync_folder(path.parent)  # also after a crash between creating the file and here
            if content.length < len(data):
                os.ftruncate(fd, content.length)
                os.fsync(fd)
        except OSError as error:
            os.close(fd)
            raise _cannot_open(path, error) from error
        except BaseException:
            os.close(fd)
            raise
        return cls(path, fd, content, len(data) - content.length, again)

    @property
    def records(self) -> tuple[dict[str, object], ...]:
        """All records in order, as a reader of the file finds them."""
        return tuple(self._records)

    def append(self, record: Mapping[str, object]) -> None:
        """Add one record; it is on disk when the call returns. Finite floats are kept exactly.

        Raises:
            RunError: the record cannot be kept as JSON (NaN, infinity, foreign types), the system
                refused to write it, or someone else changed the file. Earlier records stay valid.
        """
        frame = _frame(record, self.path)
        fd = self._check_ours()
        try:
            write_all(fd, frame)
            os.fsync(fd)
            self._length += len(frame)
            self._records.append(json.loads(frame[18:]))
        except OSError as error:
            self._cut_back(fd)
            raise RunError(
                f"Could not write to the journal {self.path}: {plain_words(error)}, then continue "
                f"with `{self._again}`. The {len(self._records)} records before this one are safe."
            ) from error
        except BaseException:  # an interrupt between the write and the flush
            self._cut_back(fd)
            raise

    def _check_ours(self) -> int:
        if self._fd is None:
            raise RunError(f"The journal {self.path} is closed; open it again to append.")
        found = os.fstat(self._fd)
        if found.st_nlink == 0 or found.st_size != self._length:
            seen = "was deleted" if found.st_nlink == 0 else f"has {found.st_size} bytes"
            raise RunError(
                f"The journal {self.path} changed while this run was writing it: we left it at "
                f"{self._length} bytes, now it {seen}. Stop every other process that uses the "
                f"run, then continue with `{self._again}`."
            )
        return self._fd

    def _cut_back(self, fd: int) -> None:
        # If even this fails, the next opening drops the torn record, and until then the size check
        # refuses to append behind it.
        with contextlib.suppress(OSError):
            os.ftruncate(fd, self._length)

    def close(self) -> None:
        """Close the file; closing twice is allowed."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
