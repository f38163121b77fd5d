"""What an experiment is: conditions to measure, or a finished run to look at."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from calibri.experiments.measured import Condition, Measured
from calibri.reporting import Answer, Drawing, Table
from calibri.results import RunSummary
from calibri.runs import Session

LEVEL = 0.05
"""Chance of any wrong "surely" in an experiment, after Holm's correction."""


@dataclass(frozen=True)
class Outcome:
    """What an experiment makes of its figures, see ``Findings``; its figure comes first."""

    answer: Answer
    verdict: str
    method: str
    tables: Sequence[Table]
    drawings: Sequence[Drawing] = ()


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
        defaults: sections of a configuration with values for what is not given.
    """

    heading: Heading
    conditions: Callable[[Session], Sequence[Condition]]
    outcome: Callable[[Session, Measured], Outcome]
    defaults: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class OfRun:
    """An experiment that looks at a finished run: its summary and its folder."""

    heading: Heading
    outcome: Callable[[RunSummary, Path], Outcome]
