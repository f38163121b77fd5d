"""Ensembles of one, two and three members over steps and over evaluations (Fig 6)."""

from __future__ import annotations

from collections.abc import Sequence

from calibri.config import RunConfig
from calibri.experiments.kinds import AS_THE_PAPER, Heading, Outcome, Searches
from calibri.experiments.over_steps import (
    at,
    drawing_of_steps,
    fewer_steps,
    over_steps,
    per_step,
    step_counts,
    table_of_steps,
)
from calibri.experiments.searching import Cell, with_space
from calibri.experiments.trials import INTERVALS, Trials, every, judged, surely
from calibri.reporting import Table, in_words
from calibri.runs import Session

_MEMBERS = {1: "1 member", 2: "2 members", 3: "3 members"}
_ONE = _MEMBERS[1]


def _cells(config: RunConfig, session: Session) -> Sequence[Cell]:
    # Further members under guidance need scales of their own for the negative prompt.
    is_guided = len(session.space.start_weights) > 1
    branches = {"branches": "separate"} if is_guided else {}
    return [
        Cell(label, with_space(config, members=count, **branches))
        for count, label in _MEMBERS.items()
    ]


def _outcome(session: Session, trials: Trials) -> Outcome:
    counts = step_counts(session)
    comparisons = 2 * len(counts)
    above = every(
        surely(trials.difference(label, _ONE, comparisons=comparisons, at=at(steps)))
        for label in list(_MEMBERS.values())[1:]
        for steps in counts
    )
    fewer = every(fewer_steps(session, trials, label) for label in _MEMBERS.values())
    costs = per_step(session, trials)
    return Outcome(
        answer=judged(above, fewer),
        verdict=_verdict(session, trials),
        method=(
            "Every ensemble is searched with as many evaluations of the transformer in all, of "
            "which an image takes one for each member and step. N members at some steps cost what "
            f"one member costs at N times as many. {trials.note()}"
        ),
        tables=[_equal(session, trials), table_of_steps(session, trials)],
        drawings=[
            drawing_of_steps(session, trials),
            drawing_of_steps(session, trials, costs),
        ],
        intervals=INTERVALS,
    )


def _verdict(session: Session, trials: Trials) -> str:
    steps = session.config.sampling.num_inference_steps

    def minus_one(label: str, others: int) -> str:
        return in_words(trials.difference(label, _ONE, at=at(steps), base_at=at(others)))

    parts = [
        f"{label} minus one {minus_one(label, steps)} at as many steps and "
        f"{minus_one(label, count * steps)} at as many evaluations"
        for count, label in _MEMBERS.items()
        if count > 1
    ]
    return f"In {trials.rewards[0]} at {steps} steps: {'; '.join(parts)}."


def _equal(session: Session, trials: Trials) -> Table:
    """Ensembles minus one member, at equal steps and at equal evaluations."""
    steps = session.config.sampling.num_inference_steps
    return Table(
        title=f"Ensembles at {steps} steps minus one member",
        columns=["", *trials.rewards],
        rows=[
            [
                f"{label}, {kind}",
                *(
                    trials.difference(label, _ONE, reward, at=at(steps), base_at=at(others))
                    for reward in trials.rewards
                ),
            ]
            for count, label in list(_MEMBERS.items())[1:]
            for kind, others in (
                ("at as many steps", steps),
                ("at as many evaluations", count * steps),
            )
        ],
        signed=list(trials.rewards),
    )


EXPERIMENT = Searches(
    Heading(
        "Ensembles over steps",
        "Figure 6",
        "ensembles raise the reward at every number of steps, and the best number is 10 to 15 in "
        "place of 30 to 50",
    ),
    _cells,
    _outcome,
    AS_THE_PAPER
    | {
        "space": {"granularity": "block", "output_knots": 1, "shift": False},
        "evaluation": {"num_prompts": 128, "images_per_prompt": 1},
    },
    over_steps,
)
