"""What a study found: from votes to shares, rankings and a verdict."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from calibri.results import Record
from calibri.study.preference import Ballot, Share, agreement, further_participants, share
from calibri.study.ranking import Rank, ranking
from calibri.study.records import QUESTIONS, Pair, Study
from calibri.study.votes import Vote


class Contest(Record):
    """Two conditions on one question.

    Attributes:
        question: a key of ``QUESTIONS``.
        first: a condition.
        second: the one whose share is given.
        wins: votes for the second.
        preferred: share of the second; a tie is half a vote.
        decided: the same without ties; None where all are ties.
        everybody: the same as ``preferred`` with those who failed attention checks.
        agreement: Krippendorff's alpha; None where it cannot be told.
        further_votes: still needed for the wanted width; None where more of these prompts'
            votes cannot do it.
    """

    question: str
    first: str
    second: str
    wins: int
    ties: int
    losses: int
    preferred: Share
    decided: Share | None
    everybody: Share
    agreement: float | None
    further_votes: int | None


class StudyResults(Record):
    """What a study found.

    Attributes:
        verdict: the outcome in words.
        invited: invitations.
        agreed: participants who gave their consent.
        finished: those who answered everything.
        left_out: numbers of participants who failed half of their attention checks or more.
        votes: answers that count, of both questions, without checks.
        prompts: texts that they are about.
        left: share of the left image among answers that are no tie: a half is no liking for a side.
        contests: each two conditions on each question.
        rankings: question to all conditions by the Bradley-Terry model; empty with two conditions.
        width: of the intervals that ``further_votes`` are counted for.
    """

    title: str
    calibri_version: str
    conditions: tuple[str, ...]
    verdict: str
    invited: int
    agreed: int
    finished: int
    left_out: tuple[int, ...]
    votes: int
    prompts: int
    left: Share | None
    contests: tuple[Contest, ...]
    rankings: dict[str, tuple[Rank, ...]]
    width: float

    def __repr__(self) -> str:
        """The outcome in words; fields have the figures."""
        return f"<study {self.title}: {self.verdict}>"

    __str__ = __repr__


@dataclass(frozen=True)
class Answer:
    """A vote with what it was about."""

    vote: Vote
    pair: Pair

    @property
    def value(self) -> float:
        """1 for the second condition, 0 for the first, 0.5 for a tie."""
        if self.vote.choice == "tie":
            return 0.5
        return float((self.vote.choice == "right") != self.vote.flipped)

    @property
    def chosen(self) -> str:
        """The condition that won; empty for a tie."""
        return "" if self.value == 0.5 else self.pair.conditions[int(self.value)]


def failed_checks(answers: Sequence[Answer]) -> tuple[int, ...]:
    """Participants who failed half of the checks that they answered, or more.

    A check is passed when both answers name the image of the prompt. Who chooses at random passes
    one in nine.
    """
    passed: dict[int, dict[str, bool]] = {}
    for answer in answers:
        if answer.pair.check:
            checks = passed.setdefault(answer.vote.participant, {})
            checks[answer.pair.id] = checks.get(answer.pair.id, True) and answer.value == 0
    return tuple(
        sorted(n for n, checks in passed.items() if 2 * sum(checks.values()) <= len(checks))
    )


def outcome(
    study: Study, votes: Sequence[Vote], counts: tuple[int, int], width: float
) -> StudyResults:
    """Say what the votes say.

    Args:
        study: what was shown.
        votes: all of them.
        counts: invitations, and participants who agreed.
        width: of an interval, for the number of votes that are still needed.

    Raises:
        StudyError: there are more than two conditions, and evalica is missing.
    """
    pairs = study.by_id()
    answers = [Answer(vote, pairs[vote.pair]) for vote in votes]
    left_out = failed_checks(answers)
    shown = [answer for answer in answers if not answer.pair.check]
    counted = [answer for answer in shown if answer.vote.participant not in left_out]
    contests = tuple(
        contest
        for question in QUESTIONS
        for two in itertools.combinations(study.conditions, 2)
        if (contest := _contest(question, two, shown, counted, width))
    )
    return StudyResults(
        title=study.title,
        calibri_version=study.calibri_version,
        conditions=study.conditions,
        verdict=_verdict(study, contests),
        invited=counts[0],
        agreed=counts[1],
        finished=_finished(study, votes),
        left_out=left_out,
        votes=len(counted),
        prompts=len({answer.pair.prompt for answer in counted}),
        left=_left(counted),
        contests=contests,
        rankings=_rankings(study, counted),
        width=width,
    )


def _contest(
    question: str,
    two: tuple[str, str],
    shown: Sequence[Answer],
    counted: Sequence[Answer],
    width: float,
) -> Contest | None:
    everybody = share(_ballot(_about(shown, question, two)))
    answers = _about(counted, question, two)
    ballot = _ballot(answers)
    preferred = share(ballot)
    if preferred is None or everybody is None:
        return None
    further = further_participants(ballot, width)
    each = len(answers) / ballot.clusters[0]
    return Contest(
        question=question,
        first=two[0],
        second=two[1],
        wins=int((ballot.values == 1).sum()),
        ties=int((ballot.values == 0.5).sum()),
        losses=int((ballot.values == 0).sum()),
        preferred=preferred,
        decided=share(ballot.take(ballot.values != 0.5)),
        everybody=everybody,
        agreement=agreement(ballot, _codes([answer.pair.id for answer in answers])),
        further_votes=None if further is None else round(further * each),
    )


def _about(answers: Sequence[Answer], question: str, two: tuple[str, str]) -> list[Answer]:
    return [a for a in answers if a.vote.question == question and a.pair.conditions == two]


def _ballot(answers: Sequence[Answer]) -> Ballot:
    return Ballot(
        np.array([answer.value for answer in answers], dtype=np.float64),
        np.array([answer.vote.participant for answer in answers], dtype=np.int64),
        _codes([answer.pair.prompt for answer in answers]),
    )


def _codes(names: Sequence[str]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    numbers = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return np.array([numbers[name] for name in names], dtype=np.int64)


def _left(answers: Sequence[Answer]) -> Share | None:
    decided = [answer for answer in answers if answer.vote.choice != "tie"]
    ballot = _ballot(decided)
    values = np.array([answer.vote.choice == "left" for answer in decided], dtype=np.float64)
    return share(Ballot(values, ballot.participants, ballot.prompts))


def _finished(study: Study, votes: Sequence[Vote]) -> int:
    whole = len(QUESTIONS) * (study.pairs_each + study.checks_each)
    _, given = np.unique([vote.participant for vote in votes], return_counts=True)
    return int((given == whole).sum())


def _rankings(study: Study, answers: Sequence[Answer]) -> dict[str, tuple[Rank, ...]]:
    if len(study.conditions) < 3 or not answers:
        return {}
    found = {}
    for question in QUESTIONS:
        about = [answer for answer in answers if answer.vote.question == question]
        conditions = [answer.pair.conditions for answer in about]
        found[question] = ranking(study.conditions, conditions, _ballot(about), study.seed)
    return found


def _verdict(study: Study, contests: Sequence[Contest]) -> str:
    judged = study.conditions[-1]
    said = {
        contest.question: _SAID[contest.question].format(
            share=percent(contest.preferred), second=judged, first=contest.first
        )
        for contest in contests
        if contest.second == judged
        # With more than two, against the first, which is the reference.
        and contest.first == study.conditions[0]
    }
    return " ".join(said.values()) or "Nobody has voted yet."


_SAID: Mapping[str, str] = {
    "preference": "{share} prefer '{second}' to '{first}'.",
    "alignment": "{share} find that it fits the text better.",
}


def percent(value: Share) -> str:
    """Write a share with its interval."""
    return f"{value.mean:.0%} [{value.low:.0%}, {value.high:.0%}]"
