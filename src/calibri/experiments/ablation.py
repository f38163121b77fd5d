"""Each block bypassed in turn (Fig 3a): its scalar at 0, all others at 1."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from calibri.experiments.kinds import LEVEL, Grid, Heading, Outcome
from calibri.experiments.measured import (
    ORIGINAL,
    Condition,
    Measured,
    check_several,
    with_scale,
)
from calibri.reporting import Answer, Table, depth_drawing
from calibri.results import Figure
from calibri.runs import Session, site_records
from calibri.seeds import derive_seed
from calibri.statistics import holm, sign_flip_test


def _conditions(session: Session) -> Sequence[Condition]:
    check_several(session)
    original = session.space.coefficients(session.space.start)
    bypassed = [Condition(n, with_scale(original, n, 0.0)) for n in session.space.names]
    return [Condition(ORIGINAL, original), *bypassed]


def _outcome(session: Session, measured: Measured) -> Outcome:
    names = session.space.names
    by_prompt = np.stack([measured.differences(name, ORIGINAL) for name in names])
    p = holm(sign_flip_test(by_prompt, derive_seed(measured.seed, "experiment")))
    found = {name: measured.figure(row) for name, row in zip(names, by_prompt, strict=True)}
    hurting = [n for n, q in zip(names, p, strict=True) if q <= LEVEL and found[n].mean > 0]
    needed = [n for n, q in zip(names, p, strict=True) if q <= LEVEL and found[n].mean < 0]
    unit = session.config.space.granularity
    title = f"Bypassed minus original, by {unit}"
    return Outcome(
        answer=_answer(len(hurting), len(needed), len(names)),
        verdict=_verdict(measured.objective, unit, found, hurting, needed),
        method=(
            f"Each {unit} is bypassed in turn (s = 0) and compared with the original model on the "
            "same prompts and noise. Bypassing surely changes the reward where a sign-flip test "
            f"over prompts says so at {LEVEL:.0%} after Holm's correction for {len(names)} tests."
        ),
        tables=[_table(title, measured, found, dict(zip(names, p, strict=True)))],
        drawings=[
            depth_drawing(
                title,
                f"{measured.objective}: above the line the model is better without. "
                "95% intervals, of each alone.",
                site_records(session.bench.scaler.sites, unit),
                found,
                base=0.0,
            )
        ],
    )


def _answer(hurting: int, needed: int, count: int) -> Answer:
    if hurting:
        return "confirmed"
    return "not confirmed" if needed == count else "not decidable"


def _verdict(
    objective: str,
    unit: str,
    found: dict[str, Figure],
    hurting: Sequence[str],
    needed: Sequence[str],
) -> str:
    open_ones = len(found) - len(hurting) - len(needed)
    head = (
        f"Bypassing one {unit} of {len(found)} surely raises {objective} for {len(hurting)}, "
        f"surely lowers it for {len(needed)}, and is not distinguishable for {open_ones}."
    )
    if not hurting:
        return head
    best = max(hurting, key=lambda name: found[name].mean)
    f = found[best]
    return f"{head} Without {best} it is {f.mean:+.3f} [{f.low:+.3f}, {f.high:+.3f}]."


def _table(title: str, measured: Measured, found: dict[str, Figure], p: dict[str, float]) -> Table:
    others = [name for name in measured.scores if name != measured.objective]
    rows = [
        [
            name,
            figure,
            float(p[name]),
            *(measured.difference(name, ORIGINAL, other) for other in others),
        ]
        for name, figure in found.items()
    ]
    columns = ["bypassed", measured.objective, "p (Holm)", *others]
    return Table(title=title, columns=columns, rows=rows, signed=[measured.objective, *others])


EXPERIMENT = Grid(
    Heading(
        "What each block is worth",
        "Figure 3a",
        "some blocks hurt: bypassing them raises the reward",
    ),
    _conditions,
    _outcome,
    {
        "space": {"granularity": "block", "output_knots": 1, "shift": False},
        "evaluation": {"num_prompts": 64, "images_per_prompt": 5},
    },
)
