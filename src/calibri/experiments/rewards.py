"""Each reward as the objective, all of them as metrics (Supp Tab 2)."""

from __future__ import annotations

from collections.abc import Sequence

from calibri.config import RunConfig
from calibri.configure import merge_config
from calibri.errors import ConfigError
from calibri.experiments.kinds import AS_THE_PAPER, Heading, Outcome, Searches
from calibri.experiments.searching import Cell
from calibri.experiments.trials import INTERVALS, Trials, every, judged, surely
from calibri.reporting import Table, forest_drawing, in_words
from calibri.runs import Session

_MINUS = "calibrated minus original"
# Whether the paper says that its gain carries over to all other rewards.
_CARRIES = {"hpsv3": True, "pickscore": True, "imagereward": False, "qalign": False}


def _names(session: Session) -> list[str]:
    rewards = session.config.rewards
    return [rewards.objective, *rewards.held_out]


def _label(reward: str) -> str:
    return f"for {reward}"


def _cells(config: RunConfig, session: Session) -> Sequence[Cell]:
    names = _names(session)
    if len(names) < 2:
        raise ConfigError(
            "This experiment compares rewards, and there is only "
            f"'{names[0]}'. Name more of them, each with --reward."
        )
    # As the session has resolved them: rewards in files have labels there.
    options = session.config.rewards.options
    return [
        Cell(
            _label(name),
            merge_config(
                config,
                {
                    "rewards": {
                        "objective": name,
                        "held_out": tuple(other for other in names if other != name),
                        "options": options,
                    }
                },
            ),
            optional=name != names[0],
        )
        for name in names
    ]


def _carries(trials: Trials, name: str) -> bool | None:
    """Whether optimising a reward surely raises every other one."""
    others = [other for other in trials.rewards if other != name]
    return every(
        surely(trials.difference(_label(name), reward=other, comparisons=len(others)))
        for other in others
    )


def _outcome(session: Session, trials: Trials) -> Outcome:
    searched = [name for name in _names(session) if _label(name) in trials.cells]
    carries = {name: _carries(trials, name) for name in searched}
    known = [name for name in searched if name in _CARRIES]
    as_said = [_agrees(carries[name], _CARRIES[name]) for name in known]
    return Outcome(
        answer=judged(*as_said) if known else "not judged",
        verdict=_verdict(trials, carries),
        method=(
            "Each reward is the objective of searches of its own, which see no other. A gain "
            "carries over where every other reward surely rises, on prompts that no search saw. "
            f"{trials.note()}"
        ),
        tables=[_table(trials, searched), trials.means()],
        drawings=[
            forest_drawing(
                "Calibrated for each reward",
                "One chart for each reward, a row for each objective.",
                {
                    reward: [
                        (_label(name), trials.difference(_label(name), reward=reward))
                        for name in searched
                    ]
                    for reward in trials.rewards
                },
                _MINUS,
            )
        ],
        intervals=INTERVALS,
    )


def _agrees(found: bool | None, claimed: bool) -> bool | None:
    return None if found is None else found is claimed


def _verdict(trials: Trials, carries: dict[str, bool | None]) -> str:
    words = {
        True: "carries over to every other reward",
        False: "lowers another reward",
        None: "cannot be told to carry over to all",
    }
    parts = [
        f"the gain of {name}, {in_words(trials.difference(_label(name), reward=name))}, "
        f"{words[sure]}"
        for name, sure in carries.items()
    ]
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


def _table(trials: Trials, searched: Sequence[str]) -> Table:
    gains = trials.gains(_MINUS.capitalize(), [_label(name) for name in searched])
    return gains.model_copy(update={"columns": ["calibrated", *trials.rewards]})


EXPERIMENT = Searches(
    Heading(
        "Which reward to optimise",
        "Supplement, table 2",
        "what raises HPSv3 or PickScore raises the other rewards, too; what raises ImageReward or "
        "Q-Align does not",
    ),
    _cells,
    _outcome,
    AS_THE_PAPER,
)
