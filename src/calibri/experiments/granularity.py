"""One scalar for each block, layer or gate (Tab 1), searched at equal cost."""

from __future__ import annotations

from collections.abc import Sequence

from calibri.config import GRANULARITIES, RunConfig
from calibri.errors import ConfigError
from calibri.experiments.kinds import AS_THE_PAPER, Heading, Outcome, Searches
from calibri.experiments.searching import Cell, with_space
from calibri.experiments.trials import (
    INTERVALS,
    Trials,
    every,
    images_to_level,
    judged,
    surely,
)
from calibri.pipelines import parameter_names
from calibri.reporting import Table, in_words
from calibri.results import Figure
from calibri.runs import Session

_BLOCK, _LAYER, _GATE = GRANULARITIES


def _cells(config: RunConfig, session: Session) -> Sequence[Cell]:
    sites = session.bench.scaler.sites
    if len({len(parameter_names(sites, name)) for name in GRANULARITIES}) == 1:
        raise ConfigError(
            "In this pipeline a block, a layer and a gate are the same, so there is nothing to "
            "compare. Choose another --pipeline."
        )
    return [Cell(name, with_space(config, granularity=name)) for name in GRANULARITIES]


def _outcome(session: Session, trials: Trials) -> Outcome:
    others = trials.rewards[1:]
    target = every(surely(trials.difference(_GATE, n, comparisons=2)) for n in (_BLOCK, _LAYER))
    consistent = every(
        surely(trials.difference(_LAYER, name, reward, comparisons=2 * len(others)))
        for name in (_BLOCK, _GATE)
        for reward in others
    )
    fastest = every(surely(_later(trials, name)) for name in (_LAYER, _GATE))
    return Outcome(
        answer=judged(target, consistent if others else None, fastest),
        verdict=_verdict(trials),
        method=(
            "Each granularity is searched with the same images in all. What is returned is "
            "compared with the original model on prompts that no search saw. A search is level "
            "with its best at the first checkpoint whose interval reaches the best one's mean. "
            f"{trials.note()}"
        ),
        tables=[trials.gains("Calibrated minus original"), _searches(trials)],
        drawings=[trials.drawing()],
        intervals=INTERVALS,
    )


def _later(trials: Trials, name: str) -> Figure:
    """Images until level with the best, of another granularity minus those of blocks."""
    return trials.over_seeds(name, images_to_level, base=_BLOCK)


def _level(trials: Trials, name: str) -> Figure:
    """Images until a search of a granularity was level with its best; never fewer than none."""
    figure = trials.over_seeds(name, images_to_level)
    return figure.model_copy(update={"low": max(0.0, figure.low)})


def _verdict(trials: Trials) -> str:
    gains = [f"by {name} {in_words(trials.difference(name))}" for name in GRANULARITIES]
    level = [f"{name} {_level(trials, name).mean:,.0f}" for name in GRANULARITIES]
    return (
        f"At equal cost {trials.rewards[0]} gains {', '.join(gains)}. Gate minus block is "
        f"{in_words(trials.difference(_GATE, _BLOCK))}. Images until a search was level with its "
        f"best: {', '.join(level)}."
    )


def _searches(trials: Trials) -> Table:
    columns = ["", "scalars", "generations", "images until level with the best"]
    return Table(
        title="Searches",
        columns=columns,
        rows=[
            [
                name,
                own[0].size,
                len(own[0].search.generations),
                _level(trials, name),
            ]
            for name, own in trials.cells.items()
        ],
    )


EXPERIMENT = Searches(
    Heading(
        "Block, layer or gate",
        "Table 1",
        "a scalar for each gate is best on the target, for each layer most consistent over other "
        "rewards, for each block fastest to train",
    ),
    _cells,
    _outcome,
    AS_THE_PAPER,
)
