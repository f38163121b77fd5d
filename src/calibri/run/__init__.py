"""A run on disk: its folder, its lock and its append-only journal."""

from calibri.run.files import write_atomically
from calibri.run.folder import RunFolder, check_run_name, check_unused
from calibri.run.journal import Journal, read_journal

__all__ = [
    "Journal",
    "RunFolder",
    "check_run_name",
    "check_unused",
    "read_journal",
    "write_atomically",
]
