"""The original and the calibrated model over the number of steps (Fig 6, one model)."""

from __future__ import annotations

from collections.abc import Sequence

from calibri.config import RunConfig
from calibri.experiments.kinds import AS_THE_PAPER, Heading, Outcome, Searches
from calibri.experiments.measured import ORIGINAL
from calibri.experiments.over_steps import (
    at,
    drawing_of_steps,
    fewer_steps,
    over_steps,
    step_counts,
    table_of_steps,
)
from calibri.experiments.searching import Cell
from calibri.experiments.trials import INTERVALS, Trials, judged, surely
from calibri.reporting import Table, in_words
from calibri.runs import Session

_CALIBRATED = "calibrated"


def _cells(config: RunConfig, session: Session) -> Sequence[Cell]:
    return [Cell(_CALIBRATED, config)]


def _outcome(session: Session, trials: Trials) -> Outcome:
    steps = session.config.sampling.num_inference_steps
    ends = {"at": at(steps), "base_at": at(2 * steps)}
    with_half = trials.difference(_CALIBRATED, ORIGINAL, comparisons=2, **ends)
    return Outcome(
        answer=judged(surely(with_half), fewer_steps(session, trials, _CALIBRATED)),
        verdict=(
            f"At {steps} steps the calibrated model minus the original at {2 * steps} is "
            f"{in_words(with_half)} in {trials.rewards[0]}, minus the original at {steps} "
            f"{in_words(trials.difference(_CALIBRATED, at=at(steps)))}."
        ),
        method=(
            f"The search is for {steps} steps; the images are of other prompts, with the same "
            f"noise at every number of steps. {trials.note()}"
        ),
        tables=[_table(session, trials), table_of_steps(session, trials)],
        drawings=[drawing_of_steps(session, trials)],
        intervals=INTERVALS,
    )


def _table(session: Session, trials: Trials) -> Table:
    return Table(
        title="Calibrated minus original at the same steps",
        columns=["steps", *trials.rewards],
        rows=[
            [
                f"{steps}",
                *(
                    trials.difference(_CALIBRATED, ORIGINAL, reward, at=at(steps))
                    for reward in trials.rewards
                ),
            ]
            for steps in step_counts(session)
        ],
        signed=list(trials.rewards),
    )


EXPERIMENT = Searches(
    Heading(
        "The reward over steps",
        "Figure 6",
        "a calibrated model needs half the steps: its best number is 10 to 15 in place of 30 to 50",
    ),
    _cells,
    _outcome,
    AS_THE_PAPER | {"evaluation": {"num_prompts": 128, "images_per_prompt": 1}},
    over_steps,
)
