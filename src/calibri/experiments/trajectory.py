"""What may change over the steps, or be searched beside the scales, against constants.

Scales and output weights with knots, the shift of the schedule, embedded guidance, and gradients.
"""

from __future__ import annotations

from collections.abc import Sequence

from calibri.config import RunConfig
from calibri.experiments.kinds import AS_THE_PAPER, Heading, Outcome, Searches
from calibri.experiments.searching import Cell, with_search, with_space
from calibri.experiments.trials import INTERVALS, Trials, surely
from calibri.reporting import Table, in_words
from calibri.runs import Session

_PAPER = "constants of the paper"
# What is searched beside or in place of constants; what a pipeline cannot have is left out.
_SPACES: dict[str, dict[str, object]] = {
    "output weights with 3 knots": {"output_knots": 3},
    "scales with 3 knots": {"knots": 3},
    "scales and output weights with 3 knots": {"knots": 3, "output_knots": 3},
    "shift of the schedule": {"shift": True},
    "shift, and output weights with 2 knots": {"shift": True, "output_knots": 2},
    "embedded guidance and shift": {"guidance": True, "shift": True},
}
_GRADIENT = "constants by gradient"


def _cells(config: RunConfig, session: Session) -> Sequence[Cell]:
    paper = with_space(config, knots=1, output_knots=1, shift=False, guidance=False)
    return [
        Cell(_PAPER, paper),
        *(Cell(k, with_space(paper, **space), optional=True) for k, space in _SPACES.items()),
        Cell(_GRADIENT, with_search(paper, "gradient"), optional=True),
    ]


def _outcome(session: Session, trials: Trials) -> Outcome:
    others = [label for label in trials.cells if label != _PAPER]
    found = {n: trials.difference(n, _PAPER, comparisons=len(others)) for n in others}
    paying = [label for label, figure in found.items() if surely(figure)]
    losing = [label for label, figure in found.items() if surely(figure) is False]
    return Outcome(
        answer="not judged",
        verdict=_verdict(trials, paying, losing, len(others)),
        method=(
            "Every way is searched with the same images in all, and compared with the paper's "
            "constants on prompts that no search saw. It surely pays where the interval, widened "
            f"for {len(others)} comparisons, leaves out 0. {trials.note()}"
        ),
        tables=[_table(trials, others), trials.gains("Calibrated minus original"), _sizes(trials)],
        drawings=[trials.drawing()],
        intervals=INTERVALS,
    )


def _verdict(trials: Trials, paying: list[str], losing: list[str], count: int) -> str:
    parts = [
        f"{label} ({in_words(trials.difference(label, _PAPER))})" for label in (*paying, *losing)
    ]
    names = f": {', '.join(parts)}" if parts else ""
    return (
        f"At equal cost {len(paying)} of {count} ways surely gain more {trials.rewards[0]} than "
        f"the paper's constants ({in_words(trials.difference(_PAPER))}), and {len(losing)} surely "
        f"less{names}."
    )


def _table(trials: Trials, others: Sequence[str]) -> Table:
    return Table(
        title="Minus the paper's constants",
        columns=["", *trials.rewards],
        rows=[
            [label, *(trials.difference(label, _PAPER, reward) for reward in trials.rewards)]
            for label in others
        ],
        signed=list(trials.rewards),
    )


def _sizes(trials: Trials) -> Table:
    return Table(
        title="Searches",
        columns=["", "numbers searched", "generations"],
        rows=[
            [label, own[0].size, len(own[0].search.generations)]
            for label, own in trials.cells.items()
        ],
    )


EXPERIMENT = Searches(
    Heading(
        "Beyond constant scales",
        "no figure: what the paper leaves constant",
        "scales and output weights are constant over the steps; guidance and schedule stay as they "
        "are",
    ),
    _cells,
    _outcome,
    AS_THE_PAPER,
)
