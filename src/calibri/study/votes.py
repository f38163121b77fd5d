"""The votes: an SQLite file to which rows are added and from which none is taken.

Every write is one transaction that is on disk (WAL, ``synchronous=FULL``) before anybody hears that
it happened, and writing the same again changes nothing: a request that is repeated, by a double
click, a second tab or a retry after the server was killed, is safe.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from calibri.errors import StudyError, first_line
from calibri.study.deal import Dealt
from calibri.study.records import QUESTIONS

_SECONDS = 10.0  # to wait for another writer

_TABLES = """
CREATE TABLE invitations (number INTEGER PRIMARY KEY, digest BLOB NOT NULL) STRICT;
CREATE TABLE consents (
  number INTEGER PRIMARY KEY REFERENCES invitations, place INTEGER NOT NULL UNIQUE, at TEXT NOT NULL
) STRICT;
CREATE TABLE dealt (
  number INTEGER NOT NULL REFERENCES consents, position INTEGER NOT NULL, pair TEXT NOT NULL,
  flipped INTEGER NOT NULL, PRIMARY KEY (number, position), UNIQUE (number, pair)
) STRICT;
CREATE TABLE votes (
  number INTEGER NOT NULL, pair TEXT NOT NULL, question TEXT NOT NULL,
  choice TEXT NOT NULL CHECK (choice IN ('left', 'right', 'tie')), at TEXT NOT NULL,
  PRIMARY KEY (number, pair, question),
  FOREIGN KEY (number, pair) REFERENCES dealt (number, pair)
) STRICT;
"""
# What is in a table stays as it is, whatever a program with the file in its hands tries.
_KEPT = "".join(
    f"CREATE TRIGGER no_{act.lower()}_of_{table} BEFORE {act} ON {table} "
    f"BEGIN SELECT RAISE(ABORT, '{table} are kept as they are'); END;\n"
    for table in ("invitations", "consents", "dealt", "votes")
    for act in ("UPDATE", "DELETE")
)


@dataclass(frozen=True)
class Vote:
    """One answer.

    Attributes:
        participant: number of the invitation.
        pair: its id.
        flipped: whether the second image was on the left.
        choice: ``"left"``, ``"right"`` or ``"tie"``.
        at: ISO 8601, UTC.
    """

    participant: int
    pair: str
    flipped: bool
    question: str
    choice: str
    at: str


class Votes:
    """The file of votes; each call opens it anew, so that threads share nothing.

    Args:
        path: the file; it must be there, see ``create``.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    @classmethod
    def create(cls, path: Path, digests: Mapping[int, bytes]) -> Votes:
        """Make the file with its invitations: number to the digest of its secret.

        Raises:
            StudyError: it cannot be written.
        """
        path.touch(mode=0o600)
        votes = cls(path)
        with votes._open() as db:
            db.execute("PRAGMA journal_mode=WAL")
            db.executescript(_TABLES + _KEPT)
        with votes._writing() as db:
            db.executemany("INSERT INTO invitations VALUES (?, ?)", digests.items())
        return votes

    def digest(self, number: int) -> bytes | None:
        """The digest of an invitation's secret; None where there is no such invitation."""
        with self._open() as db:
            row = db.execute(
                "SELECT digest FROM invitations WHERE number = ?", (number,)
            ).fetchone()
        return None if row is None else bytes(row[0])

    def consent(self, number: int, deal: Callable[[int], Sequence[Dealt]]) -> None:
        """Note that a participant agreed, and keep what they are dealt; once.

        Args:
            number: of the invitation.
            deal: from the participant's place to the pairs.
        """
        with self._writing() as db:
            if db.execute("SELECT 1 FROM consents WHERE number = ?", (number,)).fetchone():
                return
            (place,) = db.execute("SELECT count(*) FROM consents").fetchone()
            db.execute("INSERT INTO consents VALUES (?, ?, ?)", (number, place, _now()))
            rows = [(number, i, d.pair, int(d.flipped)) for i, d in enumerate(deal(place))]
            db.executemany("INSERT INTO dealt VALUES (?, ?, ?, ?)", rows)

    def dealt(self, number: int) -> list[Dealt]:
        """What a participant was dealt, in order; nothing before they agreed."""
        with self._open() as db:
            rows = db.execute(
                "SELECT pair, flipped FROM dealt WHERE number = ? ORDER BY position", (number,)
            ).fetchall()
        return [Dealt(pair, bool(flipped)) for pair, flipped in rows]

    def answered(self, number: int) -> set[str]:
        """The pairs of which a participant answered every question."""
        with self._open() as db:
            rows = db.execute(
                "SELECT pair FROM votes WHERE number = ? GROUP BY pair HAVING count(*) = ?",
                (number, len(QUESTIONS)),
            ).fetchall()
        return {pair for (pair,) in rows}

    def add(self, number: int, pair: str, answers: Mapping[str, str]) -> bool:
        """Keep the answers about one pair; where there are some already, those stay.

        Args:
            number: of the invitation.
            pair: one that was dealt to this participant.
            answers: question to choice.

        Returns:
            Whether these are the answers that count.

        Raises:
            StudyError: the pair was not dealt, or the answers could not be written.
        """
        with self._writing() as db:
            db.executemany(
                "INSERT INTO votes VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
                [(number, pair, question, choice, _now()) for question, choice in answers.items()],
            )
            kept = db.execute(
                "SELECT question, choice FROM votes WHERE number = ? AND pair = ?", (number, pair)
            ).fetchall()
        return dict(kept) == dict(answers)

    def all(self) -> list[Vote]:
        """Every vote, by participant and the order in which pairs were shown."""
        with self._open() as db:
            rows = db.execute(
                "SELECT number, pair, flipped, question, choice, at FROM votes "
                "JOIN dealt USING (number, pair) ORDER BY number, position, question"
            ).fetchall()
        return [Vote(n, pair, bool(flipped), *rest) for n, pair, flipped, *rest in rows]

    def count(self) -> tuple[int, int]:
        """Count invitations, and those of them who agreed."""
        with self._open() as db:
            (invited,) = db.execute("SELECT count(*) FROM invitations").fetchone()
            (agreed,) = db.execute("SELECT count(*) FROM consents").fetchone()
        return invited, agreed

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            # `rw`: a file that is gone is not made anew, empty.
            place = f"{self._path.resolve().as_uri()}?mode=rw"
            db = sqlite3.connect(place, uri=True, timeout=_SECONDS, isolation_level=None)
            with contextlib.closing(db):
                db.execute("PRAGMA synchronous=FULL")
                db.execute("PRAGMA foreign_keys=ON")
                yield db
        except sqlite3.Error as error:
            raise StudyError(
                f"The votes in {self._path} could not be read or written: {first_line(error)}. "
                "Check the file, the disk and its space. What was acknowledged is kept."
            ) from error

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._open() as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")
