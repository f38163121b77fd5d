"""The report of a study: figures as JSON, votes as CSV, one self-contained page."""

from __future__ import annotations

import csv
import io
from functools import partial
from pathlib import Path

from markupsafe import Markup

from calibri.errors import StudyError
from calibri.files import write_atomically
from calibri.reporting import KeyNumber, both_widths, environment, forest
from calibri.results import Figure
from calibri.signatures import typed
from calibri.study.outcome import Answer, Contest, StudyResults, failed_checks, outcome
from calibri.study.preference import Share
from calibri.study.records import QUESTIONS, Study, StudyFolder
from calibri.study.votes import Vote, Votes

RESULTS, VOTES, PAGE = "results.json", "votes.csv", "report.html"

_COLUMNS = (
    "participant", "counted", "check", "prompt", "question", "left", "right", "choice", "chosen",
    "at",
)  # fmt: skip
# What a spreadsheet would take for a formula when a cell begins with it.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


@typed
def report(study: str | Path, *, width: float = 0.1) -> StudyResults:
    """Say what a study found so far; it may go on.

    Writes ``results.json``, ``votes.csv`` and ``report.html``, a page that needs nothing else, into
    its folder.

    Args:
        study: folder of ``create``.
        width: of an interval from end to end, in (0, 1), for the number of votes still needed.

    Returns:
        Shares with 95% intervals over participants and prompts (``calibri.study`` says how in its
        page), agreement, and with more than two conditions a ranking.

    Raises:
        StudyError: there is no such study, the votes or the width are of no use, something cannot
            be written, or there are more than two conditions and the extra is missing.
    """
    if not 0 < width < 1:
        raise StudyError(f"The width of an interval is between 0 and 1, not {width}.")
    folder = StudyFolder(Path(study))
    shown, kept = folder.read(), Votes(folder.votes)
    votes = kept.all()
    results = outcome(shown, votes, kept.count(), width)
    files = {
        RESULTS: results.model_dump_json(indent=1),
        VOTES: votes_table(shown, votes),
        PAGE: render(results),
    }
    for name, text in files.items():
        write_atomically(folder.path / name, text.encode())
    return results


def votes_table(study: Study, votes: list[Vote]) -> str:
    """Write every vote as a row of CSV, with what was on either side."""
    pairs = study.by_id()
    answers = [Answer(vote, pairs[vote.pair]) for vote in votes]
    left_out = failed_checks(answers)
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(_COLUMNS)
    for answer in answers:
        vote, pair = answer.vote, answer.pair
        left, right = pair.conditions[::-1] if vote.flipped else pair.conditions
        counted = not pair.check and vote.participant not in left_out
        cells = (pair.prompt, vote.question, left, right, vote.choice, answer.chosen, vote.at)
        rows.writerow([vote.participant, int(counted), int(pair.check), *map(_cell, cells)])
    return table.getvalue()


def _cell(text: str) -> str:
    return f"'{text}" if text.startswith(_FORMULA) else text


def render(results: StudyResults) -> str:
    """Draw the page; every text in it is escaped."""
    by_question = {
        question: [c for c in results.contests if c.question == question] for question in QUESTIONS
    }
    return environment("calibri.study").get_template("report.html.jinja").render(
        results=results,
        keys=[_key(contest) for contest in _main(results)],
        questions=QUESTIONS,
        contests=by_question,
        charts={q: _chart(q, contests) for q, contests in by_question.items() if contests},
        percent=_percent,
    )  # fmt: skip


def _main(results: StudyResults) -> list[Contest]:
    ends = results.conditions[0], results.conditions[-1]
    return [c for c in results.contests if (c.first, c.second) == ends]


def _key(contest: Contest) -> KeyNumber:
    preferred = contest.preferred
    said = "preferred" if contest.question == "preference" else "fits the text better"
    tone = "good" if preferred.low > 0.5 else "bad" if preferred.high < 0.5 else "open"
    note = f"{_percent(preferred.low)} to {_percent(preferred.high)}, {preferred.votes} votes"
    return KeyNumber(_percent(preferred.mean), f"{contest.second}: {said}", note, tone)


def _percent(value: float) -> str:
    return f"{100 * value:.0f}%"


def _chart(question: str, contests: list[Contest]) -> Markup:
    rows = [(f"{c.second} over {c.first}", net(c.preferred)) for c in contests]
    axis = "share of votes for minus share against"
    return both_widths(partial(forest, rows, QUESTIONS[question], axis=axis))


def net(preferred: Share) -> Figure:
    """Votes for minus votes against, as a share of all: above 0 is a preference."""
    low, mean, high = (2 * x - 1 for x in (preferred.low, preferred.mean, preferred.high))
    return Figure(mean=mean, low=low, high=high, n=preferred.votes)
