"""Votes are added and never changed, whoever tries."""

import sqlite3
from concurrent.futures import ThreadPoolExecutor

import pytest

from calibri.errors import StudyError
from calibri.study.deal import Dealt
from calibri.study.votes import Votes

DEALT = [Dealt("a", False), Dealt("b", True)]
BOTH = {"preference": "left", "alignment": "right"}


@pytest.fixture
def votes(tmp_path):
    made = Votes.create(tmp_path / "votes.db", {1: b"one", 2: b"two"})
    made.consent(1, lambda place: DEALT)
    return made


def test_the_first_answer_stays(votes):
    assert votes.add(1, "a", BOTH)
    assert votes.add(1, "a", BOTH)
    assert not votes.add(1, "a", BOTH | {"alignment": "tie"})
    assert {(v.pair, v.question, v.choice) for v in votes.all()} == {
        ("a", "preference", "left"),
        ("a", "alignment", "right"),
    }
    assert votes.answered(1) == {"a"}


def test_consent_is_given_once_and_in_the_order_of_coming(votes):
    places = []
    for _ in range(2):
        votes.consent(2, lambda place: places.append(place) or DEALT[:1])
        votes.consent(1, lambda place: places.append(place) or [])
    assert places == [1]
    assert (votes.dealt(1), votes.dealt(2)) == (DEALT, DEALT[:1])


def test_what_was_not_dealt_cannot_be_voted_on(votes):
    for number, pair in ((1, "c"), (2, "a"), (3, "a")):
        with pytest.raises(StudyError, match="FOREIGN KEY"):
            votes.add(number, pair, BOTH)
    with pytest.raises(StudyError, match="CHECK"):
        votes.add(1, "a", {"preference": "both"})
    assert votes.all() == []


@pytest.mark.parametrize("table", ["invitations", "consents", "dealt", "votes"])
@pytest.mark.parametrize("act", ["DELETE FROM {}", "UPDATE {} SET number = 9"])
def test_rows_are_kept_whatever_program_has_the_file(votes, tmp_path, table, act):
    votes.add(1, "a", BOTH)
    before = votes.all()
    with sqlite3.connect(tmp_path / "votes.db") as db, pytest.raises(sqlite3.Error, match="kept"):
        db.execute(act.format(table))
    db.close()
    assert votes.all() == before


def test_the_same_answer_from_many_threads_is_one_vote(votes):
    with ThreadPoolExecutor(8) as pool:
        kept = list(pool.map(lambda k: votes.add(1, "a", BOTH), range(32)))
    assert all(kept)
    assert len(votes.all()) == len(BOTH)


def test_a_missing_or_damaged_file_is_said_and_not_made_anew(tmp_path):
    path = tmp_path / "votes.db"
    with pytest.raises(StudyError, match="could not be read or written"):
        Votes(path).all()
    assert not path.exists()
    path.write_bytes(b"no database" * 100)
    with pytest.raises(StudyError, match="not a database"):
        Votes(path).all()
