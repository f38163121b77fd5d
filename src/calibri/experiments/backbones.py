"""Several pipelines: at their usual steps, at few, and calibrated (Tab 2)."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from calibri.config import RunConfig
from calibri.experiments.kinds import AS_THE_PAPER, Backbones, Heading, Outcome
from calibri.experiments.measured import ORIGINAL, Condition
from calibri.experiments.over_steps import at
from calibri.experiments.searching import Cell, Found
from calibri.experiments.trials import INTERVALS, Trials, judged, surely
from calibri.reporting import Cell as TableCell
from calibri.reporting import Table, forest_drawing, in_words
from calibri.results import Fidelity, Figure
from calibri.runs import Session

_CALIBRATED = "calibrated"
# Of the steps searched for, where a pipeline does not say how many are usual.
_MORE = 3


@dataclass(frozen=True)
class Backbone:
    """What was found of one pipeline.

    Attributes:
        name: of the pipeline.
        few: steps that it was calibrated for.
        usual: steps that its pipeline takes where none are given.
        per_step: transformer evaluations of a step.
    """

    name: str
    few: int
    usual: int
    per_step: int
    trials: Trials


def usual_steps(pipe: Any, few: int) -> int:
    """Steps that a pipeline takes where none are given."""
    known = inspect.signature(type(pipe).__call__).parameters.get("num_inference_steps")
    default = None if known is None else known.default
    return default if isinstance(default, int) else _MORE * few


def _cells(config: RunConfig, session: Session) -> Sequence[Cell]:
    return [Cell(_CALIBRATED, config)]


def _conditions(session: Session, found: Sequence[Found]) -> Sequence[Condition]:
    few = session.config.sampling.num_inference_steps
    usual = usual_steps(session.bench.pipe, few)
    original = session.space.coefficients(session.space.start)
    return [
        *(
            Condition(f"{ORIGINAL}{at(n)}", original, Fidelity(num_inference_steps=n))
            for n in dict.fromkeys((usual, few))
        ),
        *(Condition(f"{one.name}{at(few)}", one.coefficients) for one in found),
    ]


def _look(session: Session, trials: Trials) -> Backbone:
    few = session.config.sampling.num_inference_steps
    usual = usual_steps(session.bench.pipe, few)
    per_step = len(session.space.start_weights)
    return Backbone(session.config.pipeline, few, usual, per_step, trials)


def _outcome(looks: Sequence[Backbone]) -> Outcome:
    better = [surely(_difference(look, look.usual, comparisons=len(looks))) for look in looks]
    parts = [
        f"{b.name} at {b.few} steps gains {in_words(_difference(b, b.usual))} in "
        f"{b.trials.rewards[0]} over its original at {b.usual}"
        for b in looks
    ]
    notes = " ".join(dict.fromkeys(look.trials.note() for look in looks))
    return Outcome(
        answer=judged(*better),
        verdict=f"Calibrated, {'; '.join(parts)}.",
        method=(
            "Each pipeline is calibrated for the same few steps, and compared with its original at "
            "as many and at its usual number, on prompts that no search saw. The guidance is the "
            f"same. {notes}"
        ),
        tables=[_scores(looks), _differences(looks)],
        drawings=[
            forest_drawing(
                "Calibrated at few steps against the original",
                "One chart for each reward, rows for the steps of the original.",
                {
                    reward: [
                        (f"{look.name}{at(steps)}", _difference(look, steps, reward))
                        for look in looks
                        for steps in dict.fromkeys((look.usual, look.few))
                    ]
                    for reward in looks[0].trials.rewards
                },
                "calibrated minus original",
            )
        ],
        intervals=INTERVALS,
    )


def _difference(
    look: Backbone, steps: int, reward: str | None = None, comparisons: int = 1
) -> Figure:
    return look.trials.difference(
        _CALIBRATED,
        ORIGINAL,
        reward,
        comparisons=comparisons,
        at=at(look.few),
        base_at=at(steps),
    )


def _scores(looks: Sequence[Backbone]) -> Table:
    rows: list[list[TableCell]] = [
        [
            f"{look.name}, {label}{at(steps)}",
            steps * look.per_step,
            *(look.trials.mean(label, reward, at(steps)) for reward in look.trials.rewards),
        ]
        for look in looks
        for label, steps in (
            (ORIGINAL, look.usual),
            (ORIGINAL, look.few),
            (_CALIBRATED, look.few),
        )
    ]
    columns = ["", "evaluations", *looks[0].trials.rewards]
    return Table(title="Mean scores", columns=columns, rows=rows)


def _differences(looks: Sequence[Backbone]) -> Table:
    rewards = looks[0].trials.rewards
    rows: list[list[TableCell]] = [
        [f"{look.name}{at(steps)}", *(_difference(look, steps, reward) for reward in rewards)]
        for look in looks
        for steps in dict.fromkeys((look.usual, look.few))
    ]
    return Table(
        title="Calibrated at few steps minus the original",
        columns=["original", *rewards],
        rows=rows,
        signed=list(rewards),
    )


EXPERIMENT = Backbones(
    Heading(
        "Several pipelines",
        "Table 2",
        "calibrated at 15 steps FLUX.1-dev, SD3.5-medium and Qwen-Image are better than at their "
        "usual 30, 40 and 50",
    ),
    _cells,
    _look,
    _outcome,
    AS_THE_PAPER,
    _conditions,
)
