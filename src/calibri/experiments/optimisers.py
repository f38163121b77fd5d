"""Ways of searching the same coefficients with the same images (Supp Fig 3)."""

from __future__ import annotations

from collections.abc import Sequence

from calibri.config import RunConfig
from calibri.experiments.kinds import AS_THE_PAPER, Heading, Outcome, Searches
from calibri.experiments.searching import Cell, with_search
from calibri.experiments.trials import INTERVALS, Trials, judged, surely
from calibri.reporting import Table, in_words
from calibri.runs import Session

# Registered search methods by name; one that a pipeline or reward cannot have is left out.
OPTIMISERS = {
    "calibri": "CMA-ES",
    "reference": "CMA-ES of the paper",
    "gradient": "gradient",
    "grpo": "Flow-GRPO",
    "random": "random search",
    "one_plus_one": "(1+1)-ES",
}
_OURS, _FLOW_GRPO = OPTIMISERS["calibri"], OPTIMISERS["grpo"]


def _cells(config: RunConfig, session: Session) -> Sequence[Cell]:
    return [
        Cell(title, with_search(config, name), optional=title != _OURS)
        for name, title in OPTIMISERS.items()
    ]


def _outcome(session: Session, trials: Trials) -> Outcome:
    is_compared = _FLOW_GRPO in trials.cells
    return Outcome(
        answer=judged(surely(trials.difference(_OURS, _FLOW_GRPO)))
        if is_compared
        else "not judged",
        verdict=_verdict(trials),
        method=(
            "Each way searches the same coefficients with the same images in all; an image with "
            "its gradient counts as three. What is returned, chosen by the same validation, is "
            f"compared on prompts that no search saw. {trials.note()}"
        ),
        tables=[trials.gains("Calibrated minus original"), _lead(trials), _speed(trials)],
        drawings=[trials.drawing()],
        intervals=INTERVALS,
    )


def _others(trials: Trials) -> list[str]:
    return [label for label in trials.cells if label != _OURS]


def _verdict(trials: Trials) -> str:
    others = _others(trials)
    found = {label: trials.difference(_OURS, label, comparisons=len(others)) for label in others}
    words = {True: "surely above", False: "surely below", None: "not distinguishable from"}
    parts = [
        f"{said} {', '.join(names)}"
        for sure, said in words.items()
        if (names := [label for label, figure in found.items() if surely(figure) is sure])
    ]
    gain = in_words(trials.difference(_OURS))
    return f"With the same images {_OURS} gains {gain} in {trials.rewards[0]}: {'; '.join(parts)}."


def _lead(trials: Trials) -> Table:
    """What is returned by ours minus what is returned by each other."""
    others = _others(trials)
    return Table(
        title=f"{_OURS} minus the others",
        columns=["", *trials.rewards],
        rows=[
            [label, *(trials.difference(_OURS, label, reward) for reward in trials.rewards)]
            for label in others
        ],
        signed=list(trials.rewards),
    )


def _speed(trials: Trials) -> Table:
    """Validated gains early and late."""
    shares = {"after a quarter of the images": 0.25, "after half": 0.5, "at the end": 1.0}
    return Table(
        title=f"Validated gain in {trials.rewards[0]}",
        columns=["", *shares],
        rows=[
            [label, *(trials.validated(label, share) for share in shares.values())]
            for label in trials.cells
        ],
        signed=list(shares),
    )


EXPERIMENT = Searches(
    Heading(
        "Ways of searching",
        "Supplement, figure 3",
        "CMA-ES is far more efficient than Flow-GRPO on the same coefficients",
    ),
    _cells,
    _outcome,
    AS_THE_PAPER,
)
