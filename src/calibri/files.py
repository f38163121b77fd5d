"""Durable writes, and operating-system errors in plain words."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
from pathlib import Path

from calibri.errors import RunError

_ADVICE = {
    errno.ENOSPC: "the disk is full; free some space",
    errno.EDQUOT: "the disk quota is used up; free some space",
    errno.EROFS: "the file system is read-only; choose a folder on another one",
    errno.EACCES: "permission denied; choose a folder you may write to",
    errno.EPERM: "permission denied; choose a folder you may write to",
    errno.EIO: "the device reported an input/output error; check the disk",
    errno.EEXIST: "a file is in the way; move it or choose another name",
    errno.ENOTDIR: "a file is in the way of a folder; move it or choose another folder",
    errno.ELOOP: "it is a symbolic link; put the real file there",
}


_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")


def plain_words(error: OSError) -> str:
    """Say what the operating system refused, and what a person can do about it."""
    return _ADVICE.get(error.errno or 0, error.strerror or str(error))


def check_new_folder(folder: Path) -> None:
    """Refuse to write into what is there already.

    Raises:
        RunError: the folder exists and holds something, or is no folder.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunError(f"'{folder}' exists and is not an empty folder. Choose another --output.")


def fsync_folder(folder: Path) -> None:
    """Make the names in a folder durable; fsync of a file alone does not keep its name.

    Raises:
        OSError: the folder cannot be opened or flushed.
    """
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_all(fd: int, data: bytes) -> None:
    """Write every byte: ``os.write`` may take only a part of them, on a nearly full disk for one.

    Raises:
        OSError: the system refused the rest.
    """
    left = memoryview(data)
    while left:
        left = left[os.write(fd, left) :]


def write_atomically(path: Path, data: bytes, *, private: bool = False) -> None:
    """Replace a file so that a crash at any moment leaves the old content or the new, never a mix.

    Args:
        path: the file; its folder must exist.
        data: the whole new content. It is on disk, name included, when the call returns.
        private: nobody but the owner may read it.

    Raises:
        RunError: the system refused; the file is as it was before.
    """
    # A hidden name of its own, so that two writers never share a temporary file.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        _write_new(temporary, data, 0o600 if private else 0o666)
        os.replace(temporary, path)
        fsync_folder(path.parent)
    except OSError as error:
        raise RunError(
            f"Could not write {path}: {plain_words(error)}, then try again. "
            "Files that were complete before stay as they were."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def remove_temporaries(folder: Path) -> None:
    """Remove what writers that were killed left behind; no other may be writing there."""
    for path in folder.rglob(".*.tmp"):
        if _TEMPORARY.fullmatch(path.name):
            with contextlib.suppress(OSError):
                path.unlink()


def _write_new(path: Path, data: bytes, mode: int) -> None:
    # mkstemp would make the file private to its owner; runs are shared within a group.
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        write_all(fd, data)
        os.fsync(fd)
    finally:
        os.close(fd)
