"""From votes to figures: who is left out, what wins, and what is written."""

import csv
import io
import json

import numpy as np
import pytest

from calibri.errors import StudyError
from calibri.study import report
from calibri.study.deal import deal
from calibri.study.outcome import StudyResults
from calibri.study.records import StudyFolder
from calibri.study.votes import Votes
from tests.study.studies import HOSTILE, answered, study

THREE = ("original", "more steps", f"calibrated {HOSTILE}")


def second(rng, pair):
    return 1


def undecided(rng, pair):
    return [0, 1, None][rng.integers(3)]


def test_what_always_wins_has_every_vote(tmp_path):
    made = study(tmp_path, participants=8)
    answered(made, 8, second)
    results = report(made)
    for contest in results.contests:
        assert (contest.wins, contest.ties, contest.losses) == (48, 0, 0)
        assert contest.preferred.mean == 1
        assert (
            contest.preferred.design_effect == 48 / 6
        )  # six prompts: worth no more than six votes
        assert 0.4 < contest.preferred.low < 0.8
    assert "100%" in results.verdict
    assert (results.invited, results.agreed, results.finished) == (8, 8, 8)
    assert results.left_out == ()
    assert abs(results.left.mean - 0.5) < 0.05  # sides are balanced


def test_nothing_between_equals(tmp_path):
    made = study(tmp_path, participants=20)
    answered(made, 20, undecided)
    for contest in report(made).contests:
        assert contest.preferred.low < 0.5 < contest.preferred.high
        assert contest.agreement == pytest.approx(0, abs=0.15)


def test_who_fails_half_of_the_checks_is_left_out_and_told(tmp_path):
    made = study(tmp_path, participants=4, checks=2)
    answered(made, 2, second)
    folder = StudyFolder(made)
    votes, pairs = Votes(folder.votes), folder.read().by_id()
    votes.consent(3, lambda place: deal(folder.read(), place))
    missed = 0
    for dealt in votes.dealt(3):  # passes one check, fails the other, and always takes the first
        right = "right" if dealt.flipped else "left"
        if pairs[dealt.pair].check:
            missed += 1
            right = "tie" if missed == 1 else right
        votes.add(3, dealt.pair, {"preference": right, "alignment": right})
    results = report(made)
    assert results.left_out == (3,)
    for contest in results.contests:
        assert contest.preferred.mean == 1
        assert contest.everybody.mean == pytest.approx(2 / 3)


def test_no_votes_is_said(tmp_path):
    results = report(study(tmp_path))
    assert results.contests == ()
    assert results.verdict == "Nobody has voted yet."


def test_files_hold_the_votes_and_the_figures(tmp_path):
    made = study(tmp_path, conditions=("=cmd()", "calibrated"), participants=2)
    answered(made, 2, second)
    results = report(made)
    assert StudyResults.model_validate_json((made / "results.json").read_bytes()) == results
    rows = list(csv.DictReader(io.StringIO((made / "votes.csv").read_text())))
    assert len(rows) == 2 * 2 * (6 + 3)
    counted = [row for row in rows if row["counted"] == "1"]
    assert len(counted) == results.votes
    for row in counted:
        assert row["chosen"] == row[row["choice"]] == "calibrated"
        assert {row["left"], row["right"]} == {"calibrated", "'=cmd()"}  # no formula


def test_the_page_is_whole_and_every_text_is_escaped(tmp_path):
    made = study(tmp_path, participants=2, title=HOSTILE, conditions=("a", HOSTILE))
    answered(made, 2, second)
    report(made)
    page = (made / "report.html").read_text()
    assert page.startswith("<!DOCTYPE html>")
    assert "default-src 'none'" in page
    assert "<script" not in page
    assert "<img" not in page
    assert "&lt;script&gt;" in page
    assert " href=" not in page


def test_more_than_two_are_ranked(tmp_path):
    pytest.importorskip("evalica", reason="needs the extra calibri[study]")
    made = study(tmp_path, conditions=THREE, participants=12, pairs_each=18)

    def choose(rng, pair):
        # Strengths 1, 2 and 4: Bradley and Terry's own model.
        a, b = (2.0 ** THREE.index(condition) for condition in pair.conditions)
        return int(rng.random() < b / (a + b))

    answered(made, 12, choose)
    results = report(made)
    assert len(results.contests) == 2 * 3
    for ranks in results.rankings.values():
        assert [rank.condition for rank in ranks] == list(THREE[::-1])
        for rank in ranks:
            expected = np.log(2.0) * (THREE.index(rank.condition) - 1)
            assert rank.low < rank.strength < rank.high
            assert rank.low < expected < rank.high
        assert sum(rank.strength for rank in ranks) == pytest.approx(0, abs=1e-6)


def test_ranking_without_the_extra_says_what_to_install(tmp_path, monkeypatch):
    made = study(tmp_path, conditions=THREE, participants=1)
    answered(made, 1, second)
    monkeypatch.setitem(__import__("sys").modules, "evalica", None)
    with pytest.raises(StudyError, match=r"evalica.*pip install 'calibri\[study\]'"):
        report(made)


@pytest.mark.parametrize("width", [0, 1, -0.1, float("nan")])
def test_a_width_that_is_none_is_refused(tmp_path, width):
    with pytest.raises(StudyError, match="between 0 and 1"):
        report(tmp_path, width=width)


def test_no_study_is_said(tmp_path):
    with pytest.raises(StudyError, match="is no study.*calibri study create"):
        report(tmp_path)
    (tmp_path / "study.json").write_text(json.dumps({"title": "x"}))
    with pytest.raises(StudyError, match="damaged"):
        report(tmp_path)
