"""What an experiment is: conditions to measure, or a finished run to look at."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from calibri.config import RunConfig
from calibri.experiments.measured import ORIGINAL, Condition, Measured
from calibri.experiments.searching import Cell, Found
from calibri.experiments.trials import Trials
from calibri.reporting import BOOTSTRAP, Answer, Drawing, Table
from calibri.results import RunSummary
from calibri.runs import Session

LEVEL = 0.05
"""Chance of any wrong "surely" in an experiment, after Holm's correction."""


AS_THE_PAPER: dict[str, Any] = {
    "seed": 20,
    "space": {"output_knots": 1, "shift": False},
    "rewards": {"guard": "off"},
    "search": {"probe": False},
    "evaluation": {"num_prompts": 256, "images_per_prompt": 1},
}
"""What searches of an experiment leave out that the paper's do not have. Seeds from 20 to 39 were
never used to choose a default of Calibri."""


@dataclass(frozen=True)
class Outcome:
    """What an experiment makes of its figures, see ``Findings``; its figure comes first."""

    answer: Answer
    verdict: str
    method: str
    tables: Sequence[Table]
    drawings: Sequence[Drawing] = ()
    intervals: str = BOOTSTRAP


@dataclass(frozen=True)
class Heading:
    """What an experiment is about.

    Attributes:
        title: of the page.
        paper: figure or table of the paper.
        claim: what the paper says there.
    """

    title: str
    paper: str
    claim: str


@dataclass(frozen=True)
class Grid:
    """An experiment that measures conditions on shared prompts and noise.

    Attributes:
        conditions: the grid, of a session whose configuration has nothing open.
        outcome: what the figures say.
        defaults: values of a configuration, by section, for what is not given.
    """

    heading: Heading
    conditions: Callable[[Session], Sequence[Condition]]
    outcome: Callable[[Session, Measured], Outcome]
    defaults: Mapping[str, Any] = field(default_factory=dict)


def returned(session: Session, found: Sequence[Found]) -> list[Condition]:
    """The original model, and what each search returned."""
    original = session.space.coefficients(session.space.start)
    return [Condition(ORIGINAL, original), *(Condition(f.name, f.coefficients) for f in found)]


@dataclass(frozen=True)
class Searches:
    """An experiment that searches in several ways, with several seeds, at equal cost.

    Attributes:
        cells: ways of searching, from the configuration as it was given and its session.
        outcome: what the figures say.
        defaults: as for ``Grid``; ``seed`` may be among them.
        conditions: what is measured in the end, the original model among it.
        with_diversity: measure how much the images of a prompt differ, too.
    """

    heading: Heading
    cells: Callable[[RunConfig, Session], Sequence[Cell]]
    outcome: Callable[[Session, Trials], Outcome]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    conditions: Callable[[Session, Sequence[Found]], Sequence[Condition]] = returned
    with_diversity: bool = False


def as_given(config: RunConfig) -> Mapping[str, RunConfig]:
    """The pipeline of a configuration under its own name."""
    return {config.pipeline: config}


@dataclass(frozen=True)
class Backbones:
    """An experiment that does the same with several models.

    Attributes:
        cells: as for ``Searches``, like what follows.
        look: what the outcome needs to know of one model.
        outcome: what all of them say.
        models: configuration by label, of each configuration that is given.
    """

    heading: Heading
    cells: Callable[[RunConfig, Session], Sequence[Cell]]
    look: Callable[[Session, Trials], Any]
    outcome: Callable[[Sequence[Any]], Outcome]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    conditions: Callable[[Session, Sequence[Found]], Sequence[Condition]] = returned
    models: Callable[[RunConfig], Mapping[str, RunConfig]] = as_given
    with_diversity: bool = False


@dataclass(frozen=True)
class OfRun:
    """An experiment that looks at a finished run: its summary and its folder."""

    heading: Heading
    outcome: Callable[[RunSummary, Path], Outcome]
