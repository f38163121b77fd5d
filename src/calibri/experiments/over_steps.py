"""What searches returned, and the original, at several numbers of steps (Fig 6)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from calibri.experiments.measured import ORIGINAL, Condition
from calibri.experiments.searching import Found
from calibri.experiments.trials import STYLES, Trials, surely
from calibri.reporting import Cell, Drawing, Line, Table, curve_drawing
from calibri.results import Fidelity
from calibri.runs import Session
from calibri.statistics import crossed_mean

# Of the steps that are searched for; the paper's range is from 10 to 50 for 15.
_MULTIPLES = (0.5, 0.75, 1.0, 1.5, 2.0, 3.0)


def step_counts(session: Session) -> list[int]:
    """Numbers of steps to sample at, ascending."""
    steps = session.config.sampling.num_inference_steps
    return sorted({max(1, round(steps * multiple)) for multiple in _MULTIPLES})


def at(steps: int) -> str:
    """End of the name of a condition that is sampled with so many steps."""
    return f" at {steps} steps"


def over_steps(session: Session, found: Sequence[Found]) -> list[Condition]:
    """The original model and what each search returned, at every number of steps."""
    original = session.space.coefficients(session.space.start)
    models = {ORIGINAL: original, **{one.name: one.coefficients for one in found}}
    return [
        Condition(f"{name}{at(steps)}", model, Fidelity(num_inference_steps=steps))
        for steps in step_counts(session)
        for name, model in models.items()
    ]


def per_step(session: Session, trials: Trials) -> dict[str, int]:
    """Transformer evaluations of a step, by cell."""
    own = {ORIGINAL: len(session.space.start_weights)}
    return own | {k: len(f[0].coefficients.start_weights) for k, f in trials.cells.items()}


def table_of_steps(session: Session, trials: Trials) -> Table:
    """Mean score at every number of steps."""
    models = [ORIGINAL, *trials.cells]
    rows: list[list[Cell]] = [
        [f"{steps}", *(trials.mean(label, at=at(steps)) for label in models)]
        for steps in step_counts(session)
    ]
    return Table(title=f"Mean {trials.rewards[0]} by steps", columns=["steps", *models], rows=rows)


def drawing_of_steps(
    session: Session, trials: Trials, costs: Mapping[str, int] | None = None
) -> Drawing:
    """Draw the reward over steps, or over transformer evaluations.

    Args:
        session: of the experiment.
        trials: of ``over_steps``.
        costs: evaluations of a step, by cell; None for steps.
    """
    axis = "steps" if costs is None else "transformer evaluations"
    lines = [
        Line(
            tuple(
                (steps * (costs or {}).get(label, 1), trials.mean(label, at=at(steps)))
                for steps in step_counts(session)
            ),
            label,
            style,
        )
        for label, style in zip((ORIGINAL, *trials.cells), (ORIGINAL, *STYLES), strict=False)
    ]
    title = f"{trials.rewards[0]} over {axis}"
    return curve_drawing(title, "Mean scores on the same prompts and noise.", {"": lines}, axis)


def fewer_steps(session: Session, trials: Trials, label: str) -> bool | None:
    """Whether a model gains less than the original from twice the steps searched for."""
    steps = session.config.sampling.num_inference_steps
    gains = [
        trials.scores(name, at=at(2 * steps)) - trials.scores(name, at=at(steps))
        for name in (ORIGINAL, label)
    ]
    return surely(crossed_mean(gains[0] - gains[1], 0.05 / 2))
