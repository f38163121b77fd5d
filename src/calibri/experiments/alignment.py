"""Calibrated, aligned by a LoRA, and both (Tab 4, Fig 8)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from calibri.config import RunConfig
from calibri.errors import ConfigError
from calibri.experiments.kinds import AS_THE_PAPER, Backbones, Heading, Outcome
from calibri.experiments.measured import ORIGINAL
from calibri.experiments.searching import Cell
from calibri.experiments.trials import INTERVALS, Trials, judged, surely
from calibri.pipelines import lora_of
from calibri.reporting import Cell as TableCell
from calibri.reporting import Table, forest_drawing, in_words
from calibri.results import Figure
from calibri.runs import Session
from calibri.statistics import crossed_mean

BASE, ALIGNED = "base", "aligned"
_CALIBRATED = "calibrated"
# Of the gain of aligning: less of a loss than this is called matching it.
_MARGIN = 0.1


@dataclass(frozen=True)
class Model:
    """What was found of the pipeline, or of the same under the LoRA.

    Attributes:
        trials: of its searches.
        size: numbers that they searched.
        lora_size: numbers of the LoRA; 0 without one.
    """

    trials: Trials
    size: int
    lora_size: int


# A model, and whether calibrated.
_State = tuple[int, str]
_STATES: dict[str, _State] = {
    BASE: (0, ORIGINAL),
    _CALIBRATED: (0, _CALIBRATED),
    ALIGNED: (1, ORIGINAL),
    "both": (1, _CALIBRATED),
}
_PAIRS = (
    (_CALIBRATED, BASE),
    (ALIGNED, BASE),
    ("both", BASE),
    (_CALIBRATED, ALIGNED),
    ("both", ALIGNED),
    ("both", _CALIBRATED),
)


def _models(config: RunConfig) -> Mapping[str, RunConfig]:
    if config.lora is None:
        raise ConfigError(
            "The experiment compares a pipeline with the same under a LoRA that aligns it. Name "
            "one: --lora FOLDER; training/align_pipeline.py trains one."
        )
    return {BASE: config.model_copy(update={"lora": None}), ALIGNED: config}


def _cells(config: RunConfig, session: Session) -> Sequence[Cell]:
    return [Cell(_CALIBRATED, config)]


def _look(session: Session, trials: Trials) -> Model:
    lora = lora_of(session.bench.pipe)
    return Model(trials, trials.found[0].size, 0 if lora is None else lora.parameters)


def _difference(
    models: Sequence[Model], one: str, other: str, reward: str | None = None, comparisons: int = 1
) -> Figure:
    """One state minus another, paired by prompt and noise, and by seed where both searched."""
    first, second = (
        models[model].trials.scores(label, reward)
        for model, label in (_STATES[one], _STATES[other])
    )
    return crossed_mean(first - second, 0.05 / comparisons)


def _outcome(models: Sequence[Model]) -> Outcome:
    against = _difference(models, _CALIBRATED, ALIGNED, comparisons=2)
    added = _difference(models, "both", ALIGNED, comparisons=2)
    own = models[0].trials.rewards[0]
    gains = {one: _difference(models, one, BASE) for one in (_CALIBRATED, ALIGNED)}
    rewards = models[0].trials.rewards
    return Outcome(
        answer=judged(_matches(against, gains[ALIGNED]), surely(added)),
        verdict=(
            f"{own} changes by {in_words(gains[_CALIBRATED])} with {models[0].size:,} numbers "
            f"calibrated and by {in_words(gains[ALIGNED])} with the LoRA of "
            f"{models[1].lora_size:,}: {in_words(against)} for calibrating against aligning. "
            f"Calibrating the aligned model changes it by {in_words(added)}."
        ),
        method=(
            "The pipeline and the same under the LoRA are calibrated in the same way: same space, "
            "prompts, noise and images. All four are sampled on the same held-out prompts and "
            "noise, which no search saw; what the LoRA was trained on is not known here. The claim "
            f"has two parts: calibrating surely has {1 - _MARGIN:.0%} of the gain of aligning, and "
            f"calibrating the aligned model surely makes it better. {models[0].trials.note()}"
        ),
        tables=[_means(models, rewards), _differences(models, rewards)],
        drawings=[
            forest_drawing(
                "Change against the pipeline as it is",
                "One chart for each measure; on the same prompts and noise.",
                {
                    reward: [
                        (one, _difference(models, one, BASE, reward))
                        for one in (_CALIBRATED, ALIGNED, "both")
                    ]
                    for reward in rewards
                },
                "minus base",
            )
        ],
        intervals=INTERVALS,
    )


def _matches(against: Figure, gain: Figure) -> bool | None:
    """Whether calibrating has the gain of aligning, within the margin; None where it is open."""
    if against.low >= -_MARGIN * max(gain.mean, 0.0):
        return True
    return False if against.high < 0 else None


def _means(models: Sequence[Model], rewards: Sequence[str]) -> Table:
    base, aligned = models
    numbers = {
        BASE: 0,
        _CALIBRATED: base.size,
        ALIGNED: aligned.lora_size,
        "both": aligned.size + aligned.lora_size,
    }
    rows: list[list[TableCell]] = [
        [state, f"{numbers[state]:,}", *(models[m].trials.mean(label, r) for r in rewards)]
        for state, (m, label) in _STATES.items()
    ]
    return Table(title="Mean scores", columns=["", "numbers", *rewards], rows=rows)


def _differences(models: Sequence[Model], rewards: Sequence[str]) -> Table:
    rows: list[list[TableCell]] = [
        [f"{one} minus {other}", *(_difference(models, one, other, r) for r in rewards)]
        for one, other in _PAIRS
    ]
    return Table(title="Differences", columns=["", *rewards], rows=rows, signed=list(rewards))


EXPERIMENT = Backbones(
    Heading(
        "Calibrated, aligned, and both",
        "Table 4, figure 8",
        "calibrating matches Flow-GRPO with 216 against 18.78 million parameters, and adds to it",
    ),
    _cells,
    _look,
    _outcome,
    AS_THE_PAPER | {"evaluation": {"num_prompts": 256, "images_per_prompt": 2}},
    models=_models,
    with_diversity=True,
)
