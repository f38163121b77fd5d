"""The reward over the scalar of each block (Fig 3b): all others stay at 1."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from calibri.arrays import Scores, Vector
from calibri.experiments.kinds import LEVEL, Grid, Heading, Outcome
from calibri.experiments.measured import Condition, Measured, check_several, with_scale
from calibri.reporting import Answer, Drawing, Line, Table, curve_drawing, depth_drawing
from calibri.results import Figure
from calibri.runs import Session, site_records
from calibri.seeds import derive_seed
from calibri.statistics import holm, sign_flip_test

# Closer to 1, where the optima of trained models are (Fig 3b).
VALUES = (0.0, 0.5, 0.7, 0.85, 1.0, 1.15, 1.3, 1.5, 2.0)
_STEP = 0.15  # between 1 and its two neighbours on either side
ORIGINAL = "1"
_RESAMPLES = 2000
_NAMED = 3


def _label(name: str, value: float) -> str:
    return ORIGINAL if value == 1.0 else f"{name} = {value:g}"


def _conditions(session: Session) -> Sequence[Condition]:
    check_several(session)
    original = session.space.coefficients(session.space.start)
    swept = [
        Condition(_label(name, value), with_scale(original, name, value))
        for name in session.space.names
        for value in VALUES
        if value != 1.0
    ]
    return [Condition(ORIGINAL, original), *swept]


def optimum(values: Vector, scores: Scores, seed: int) -> Figure:
    """Where the mean score is highest, with its 95% interval over resampled prompts.

    Between the values of the grid it is where the parabola through the best and its neighbours is.

    Args:
        values: of the grid, ascending, float64 (values,).
        scores: of each prompt, float64 (values, prompts).
        seed: of the resampling.
    """
    count = scores.shape[1]
    rng = np.random.default_rng(derive_seed(seed, "optimum"))
    weights = rng.multinomial(count, np.full(count, 1 / count), size=_RESAMPLES) / count
    places = _vertices(values, weights @ scores.T)
    low, high = np.quantile(places, [0.025, 0.975])
    best = _vertices(values, scores.mean(axis=1)[None])[0]
    return Figure(mean=float(best), low=float(low), high=float(high), n=count)


def _vertices(values: Vector, means: NDArray[np.float64]) -> Vector:
    """Vertex of the parabola through each row's highest mean and its neighbours: (rows,)."""
    at = means.argmax(axis=1)
    inner = np.clip(at, 1, len(values) - 2)
    rows = np.arange(len(means))
    x0, x1, x2 = (values[inner + k] for k in (-1, 0, 1))
    y0, y1, y2 = (means[rows, inner + k] for k in (-1, 0, 1))
    left, right = (y1 - y0) / (x1 - x0), (y2 - y1) / (x2 - x1)
    curvature = right - left
    with np.errstate(divide="ignore", invalid="ignore"):
        vertex = (x0 + x1) / 2 - left * (x2 - x0) / (2 * curvature)
    # At an end of the grid, or on a plateau, the best value itself.
    is_peak = (at == inner) & (curvature < 0)
    return np.asarray(np.where(is_peak, np.clip(vertex, x0, x2), values[at]))


def cross_fitted(scores: Scores, base: int, judge: Scores | None = None) -> Scores:
    """Gain over the original of the best value, chosen on other prompts than it is judged on.

    The best of several noisy means is partly luck. Each half of the prompts is therefore judged at
    the value that is best on the other half.

    Args:
        scores: that choose, float64 (values, prompts).
        base: row of the original model.
        judge: scores that judge; None for those that choose.

    Returns:
        float64 (prompts,), in their order.
    """
    judge = scores if judge is None else judge
    gains = np.empty(scores.shape[1])
    for half in (0, 1):
        best = scores[:, 1 - half :: 2].mean(axis=1).argmax()
        gains[half::2] = judge[best, half::2] - judge[base, half::2]
    return gains


def slopes(scores: Scores) -> Scores:
    """Slope of each prompt's reward at the original model, by the five-point rule.

    Where the reward is best at 1 its slope there is 0, so that a slope that is not says that the
    optimum is elsewhere. The rule is exact for polynomials of degree 4 (Abramowitz and Stegun,
    25.3.6), so that a reward which falls faster on one side than on the other does not deceive it.

    Args:
        scores: float64 (values, prompts).

    Returns:
        float64 (prompts,).
    """
    one = VALUES.index(1.0)
    far, near = (scores[one + k] - scores[one - k] for k in (2, 1))
    return np.asarray((8 * near - far) / (12 * _STEP))


def _outcome(session: Session, measured: Measured) -> Outcome:
    names, unit = session.space.names, session.config.space.granularity
    seed, base = derive_seed(measured.seed, "experiment"), VALUES.index(1.0)
    tables = {name: _grid(measured, name, measured.objective) for name in names}
    optima = {name: optimum(np.array(VALUES), table, seed) for name, table in tables.items()}
    gains = {name: cross_fitted(table, base) for name, table in tables.items()}
    steep = np.stack([slopes(table) for table in tables.values()])
    p = dict(zip(names, holm(sign_flip_test(steep, seed)), strict=True))
    sure = [name for name in names if p[name] <= LEVEL]
    return Outcome(
        answer=_answer(len(sure), len(names)),
        verdict=_verdict(measured, unit, optima, gains, sure),
        method=(
            f"The scalar of each {unit} takes {len(VALUES)} values from {VALUES[0]:g} to "
            f"{VALUES[-1]:g}, on the same prompts and noise. Its optimum is surely not 1 where the "
            "slope of the reward at 1, by the five-point rule, is not 0: by a sign-flip test over "
            f"prompts, at {LEVEL:.0%} after Holm's correction for {len(names)} tests. The gain at "
            "the optimum is judged on prompts that did not choose it: each half at the value that "
            "is best on the other."
        ),
        tables=[_table(unit, measured, optima, gains, p)],
        drawings=_drawings(session, measured, optima),
    )


def _grid(measured: Measured, name: str, reward: str) -> Scores:
    places = [measured.labels.index(_label(name, value)) for value in VALUES]
    return measured.scores[reward][places]


def _answer(sure: int, count: int) -> Answer:
    if sure == count:
        return "confirmed"
    return "confirmed in part" if sure else "not decidable"


def _verdict(
    measured: Measured,
    unit: str,
    optima: dict[str, Figure],
    gains: dict[str, Scores],
    sure: Sequence[str],
) -> str:
    head = f"The optimum of {len(sure)} of {len(optima)} {unit}s is surely not 1"
    if not sure:
        return f"{head}, by the slope of {measured.objective} there."
    farthest = sorted(sure, key=lambda name: -float(gains[name].mean()))[:_NAMED]
    named = [f"{name} is best at {_said(optima[name])}" for name in farthest]
    gain = measured.figure(gains[farthest[0]])
    return (
        f"{head}: {', '.join(named)}{' and so on' if len(sure) > _NAMED else ''}. On prompts that "
        f"did not choose the scale, {measured.objective} changes by {_said(gain, '+.3f')} with the "
        "first."
    )


def _said(figure: Figure, form: str = ".2f") -> str:
    return f"{figure.mean:{form}} [{figure.low:{form}}, {figure.high:{form}}]"


def _table(
    unit: str,
    measured: Measured,
    optima: dict[str, Figure],
    gains: dict[str, Scores],
    p: dict[str, float],
) -> Table:
    others = [name for name in measured.scores if name != measured.objective]
    base = VALUES.index(1.0)
    rows = [
        [
            name,
            best,
            measured.figure(gains[name]),
            float(p[name]),
            *(
                measured.figure(
                    cross_fitted(
                        _grid(measured, name, measured.objective),
                        base,
                        _grid(measured, name, other),
                    )
                )
                for other in others
            ),
        ]
        for name, best in optima.items()
    ]
    gained = [f"gain in {name}" for name in (measured.objective, *others)]
    columns = [unit, "best scale", gained[0], "p (Holm)", *gained[1:]]
    return Table(title=f"Optimum of each {unit}", columns=columns, rows=rows, signed=gained)


def _drawings(
    session: Session, measured: Measured, optima: dict[str, Figure]
) -> tuple[Drawing, ...]:
    unit = session.config.space.granularity
    lines = {
        name: [
            Line(
                tuple((v, measured.difference(_label(name, v), ORIGINAL)) for v in VALUES),
            )
        ]
        for name in optima
    }
    return (
        depth_drawing(
            f"Best scale along the network, by {unit}",
            f"Where {measured.objective} is highest, with 95% intervals. At 1 a {unit} is best as "
            "it was trained.",
            site_records(session.bench.scaler.sites, unit),
            optima,
            base=1.0,
        ),
        curve_drawing(
            f"{measured.objective} over the scale, minus the original",
            "95% intervals, paired by prompt and noise.",
            lines,
            "scale",
            columns=3,
        ),
    )


EXPERIMENT = Grid(
    Heading(
        "The best scale of each block",
        "Figure 3b",
        "each block has an optimum that is not 1",
    ),
    _conditions,
    _outcome,
    {
        "space": {"granularity": "block", "output_knots": 1, "shift": False},
        "evaluation": {"num_prompts": 160, "images_per_prompt": 1},
    },
)
