"""How much the images of one prompt differ, before and after (Supp Tab 1)."""

from __future__ import annotations

from collections.abc import Sequence

from calibri.config import RunConfig
from calibri.errors import ConfigError
from calibri.experiments.kinds import AS_THE_PAPER, Heading, Outcome, Searches
from calibri.experiments.measured import ORIGINAL, Condition
from calibri.experiments.over_steps import at
from calibri.experiments.searching import Cell, Found
from calibri.experiments.trials import INTERVALS, Trials, judged, surely
from calibri.reporting import Table, forest_drawing, in_words
from calibri.results import DIVERSITY, Fidelity, Figure
from calibri.runs import Session

_CALIBRATED = "calibrated"
# The paper's original takes 40 steps where the calibrated model takes 15.
_MORE = 3
# Of the original's diversity: less of a loss than this is called keeping it.
_MARGIN = 0.1


def _cells(config: RunConfig, session: Session) -> Sequence[Cell]:
    count, most = config.evaluation.images_per_prompt, config.sampling.batch_size
    if not 2 <= count <= most:
        raise ConfigError(
            f"Diversity is of the images of a prompt in one batch, and there are {count}. Set "
            f"evaluation.images_per_prompt to 2 or more, at most sampling.batch_size ({most})."
        )
    return [Cell(_CALIBRATED, config)]


def _steps(session: Session) -> tuple[int, int]:
    steps = session.config.sampling.num_inference_steps
    return steps, _MORE * steps


def _conditions(session: Session, found: Sequence[Found]) -> Sequence[Condition]:
    few, many = _steps(session)
    original = session.space.coefficients(session.space.start)
    models = [Condition(f"{f.name}{at(few)}", f.coefficients) for f in found]
    others = [
        Condition(f"{ORIGINAL}{at(n)}", original, Fidelity(num_inference_steps=n))
        for n in (few, many)
    ]
    return [*models, *others]


def _outcome(session: Session, trials: Trials) -> Outcome:
    few, many = _steps(session)
    change = _change(session, trials, DIVERSITY, many)
    before = trials.mean(ORIGINAL, DIVERSITY, at(many)).mean
    gain = _change(session, trials, trials.rewards[0], many)
    return Outcome(
        answer=judged(_keeps(change, before), surely(gain)),
        verdict=(
            f"At {few} steps the calibrated model has {_share(change, before)} of the diversity "
            f"that the original has at {many}, and "
            f"{in_words(gain)} in {trials.rewards[0]}."
        ),
        method=(
            "Diversity is the mean distance between the images of one prompt, in features where a "
            "reward has them and in pixels elsewhere. It is called kept where it is surely above "
            f"{1 - _MARGIN:.0%} of the original's at {many} steps. {trials.note()}"
        ),
        tables=[_means(session, trials), _changes(session, trials)],
        drawings=[
            forest_drawing(
                f"Calibrated at {few} steps against the original",
                "One chart for each measure, a row for each number of steps of the original.",
                {
                    reward: [
                        (f"original{at(steps)}", _change(session, trials, reward, steps))
                        for steps in (few, many)
                    ]
                    for reward in trials.rewards
                },
                "calibrated minus original",
            )
        ],
        intervals=INTERVALS,
    )


def _keeps(change: Figure, before: float) -> bool | None:
    if change.low > -_MARGIN * before:
        return True
    return False if change.high < -_MARGIN * before else None


def _share(change: Figure, before: float) -> str:
    if before <= 0:
        return "some"
    mean, low, high = (max(0.0, 1 + x / before) for x in (change.mean, change.low, change.high))
    return f"{mean:.0%} [{low:.0%}, {high:.0%}]"


def _means(session: Session, trials: Trials) -> Table:
    few, many = _steps(session)
    settings = [(ORIGINAL, many), (ORIGINAL, few), (_CALIBRATED, few)]
    return Table(
        title="Mean scores and diversity",
        columns=["", *trials.rewards],
        rows=[
            [
                f"{label}{at(steps)}",
                *(trials.mean(label, reward, at(steps)) for reward in trials.rewards),
            ]
            for label, steps in settings
        ],
    )


def _change(session: Session, trials: Trials, reward: str, steps: int) -> Figure:
    """Calibrated at few steps minus the original at some."""
    few, _ = _steps(session)
    return trials.difference(_CALIBRATED, ORIGINAL, reward, at=at(few), base_at=at(steps))


def _changes(session: Session, trials: Trials) -> Table:
    few, many = _steps(session)
    return Table(
        title=f"Calibrated at {few} steps minus the original",
        columns=["original", *trials.rewards],
        rows=[
            [
                f"{steps} steps",
                *(_change(session, trials, reward, steps) for reward in trials.rewards),
            ]
            for steps in (few, many)
        ],
        signed=list(trials.rewards),
    )


EXPERIMENT = Searches(
    Heading(
        "Diversity",
        "Supplement, table 1",
        "a calibrated model at few steps is better than the original at many, and its images of a "
        "prompt differ as much",
    ),
    _cells,
    _outcome,
    AS_THE_PAPER | {"evaluation": {"num_prompts": 128, "images_per_prompt": 4}},
    _conditions,
    with_diversity=True,
)
