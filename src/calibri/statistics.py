"""Means over prompts with bootstrap intervals; numpy only.

Images of one prompt are alike, so the prompt is the unit that is resampled (cluster bootstrap:
Davison and Hinkley, *Bootstrap Methods and their Application*, 1997, section 3.8).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calibri.errors import RewardError
from calibri.results import Figure
from calibri.seeds import derive_seed

_FLIPS = 20_000
_BLOCK_ENTRIES = 1 << 21  # of resampled prompts at a time: bounds memory for many prompts


def _checked(values: ArrayLike) -> NDArray[np.float64]:
    table = np.asarray(values, dtype=np.float64)
    if table.ndim not in (1, 2):
        raise ValueError(
            f"Scores must have shape (prompts,) or (prompts, images_per_prompt); got {table.shape}."
        )
    if table.shape[0] < 2:
        raise ValueError(f"An interval needs at least 2 prompts; got {table.shape[0]}.")
    if table.size == 0:
        raise ValueError(f"Every prompt needs at least one image; got shape {table.shape}.")
    if not np.isfinite(table).all():
        count = int((~np.isfinite(table)).sum())
        raise ValueError(f"Scores must be finite; {count} of {table.size} are not.")
    return table


def bootstrap_mean(values: ArrayLike, seed: int, resamples: int = 2000) -> Figure:
    """Mean with its percentile 95% interval, resampling prompts with replacement.

    Args:
        values: finite scores, float, shape (prompts,) or (prompts, images_per_prompt).
        seed: of the resampling; equal arguments give equal figures.
        resamples: number of bootstrap means.

    Returns:
        The mean of all scores, the 2.5% and 97.5% quantiles of the resampled means, and the number
        of prompts. With few prompts (below about 20) such intervals are a little too narrow.

    Raises:
        ValueError: another shape, fewer than 2 prompts, or scores that are not finite.
    """
    table = _checked(values)
    exponent = _headroom(table)
    return _unscaled(_bootstrap(np.ldexp(table, -exponent), seed, resamples), exponent)


def _headroom(*tables: NDArray[np.float64]) -> int:
    """Power of two to divide scores by so that no sum overflows; 0 of all but absurd ones."""
    largest = max(float(np.abs(table).max()) for table in tables)
    return 64 if largest > 1e280 else 0


def _unscaled(figure: Figure, exponent: int) -> Figure:
    with np.errstate(over="ignore"):
        mean, low, high = np.ldexp([figure.mean, figure.low, figure.high], exponent).tolist()
    if not np.isfinite([mean, low, high]).all():
        raise RewardError(
            "Scores lie further apart than a number can say (1.8e308). Check the reward: its "
            "scores should be of ordinary size."
        )
    return Figure(mean=mean, low=low, high=high, n=figure.n)


def _bootstrap(table: NDArray[np.float64], seed: int, resamples: int) -> Figure:
    means = table if table.ndim == 1 else table.mean(axis=1)
    rng = np.random.default_rng(derive_seed(seed, "bootstrap"))
    rows = max(1, _BLOCK_ENTRIES // means.size)
    blocks = [
        means[rng.integers(means.size, size=(min(rows, resamples - done), means.size))].mean(axis=1)
        for done in range(0, resamples, rows)
    ]
    low, high = np.quantile(np.concatenate(blocks), [0.025, 0.975])
    return Figure(mean=float(means.mean()), low=float(low), high=float(high), n=means.size)


def paired_difference(a: ArrayLike, b: ArrayLike, seed: int, resamples: int = 2000) -> Figure:
    """Mean of ``a - b`` with its interval, for scores of the same prompts and seeds.

    Args:
        a: finite scores, shape (prompts,) or (prompts, images_per_prompt).
        b: scores of the same shape; entry by entry the same prompt and noise as ``a``.
        seed: of the resampling.
        resamples: number of bootstrap means.

    Raises:
        ValueError: the shapes differ, or as ``bootstrap_mean``.
        RewardError: the mean difference is beyond the range of float64.
    """
    # Checked before subtracting: the difference of two infinities would warn and become NaN.
    first, second = _checked(a), _checked(b)
    if first.shape != second.shape:
        raise ValueError(
            f"Paired scores must have one shape; got {first.shape} and {second.shape}."
        )
    exponent = _headroom(first, second)
    differences = np.ldexp(first, -exponent) - np.ldexp(second, -exponent)
    return _unscaled(_bootstrap(differences, seed, resamples), exponent)


def sign_flip_test(
    differences: ArrayLike, seed: int, flips: int | None = None
) -> NDArray[np.float64]:
    """Test whether means of paired differences are 0, by flipping the signs of prompts.

    Where two settings do not differ, each prompt's difference is as likely of either sign, whatever
    its distribution (Fisher, *The Design of Experiments*, 1935, section 21). The same flips serve
    all tests.

    Args:
        differences: finite, shape (tests, prompts).
        seed: of the flips; equal arguments give equal results.
        flips: random flips; no p-value is below 1 / (flips + 1). None for 20,000, or 50 for each
            test where these are more, so that a correction for their number leaves p-values small.

    Returns:
        Two-sided p-values, float64 (tests,), in (0, 1].

    Raises:
        ValueError: another shape, or differences that are not finite.
    """
    table = np.asarray(differences, dtype=np.float64)
    if table.ndim != 2 or not np.isfinite(table).all():
        raise ValueError(f"Differences must be finite, (tests, prompts); got {table.shape}.")
    flips = max(_FLIPS, 50 * len(table)) if flips is None else flips
    rng = np.random.default_rng(derive_seed(seed, "sign flips"))
    # Sums that are equal but for the order of their terms must count as equal.
    observed = np.abs(table.sum(axis=1)) * (1 - 1e-12)
    reached = np.ones(len(table))
    rows = max(1, _BLOCK_ENTRIES // max(1, table.shape[1]))
    for done in range(0, flips, rows):
        signs = rng.choice((-1.0, 1.0), size=(min(rows, flips - done), table.shape[1]))
        reached += (np.abs(signs @ table.T) >= observed).sum(axis=0)
    return reached / (flips + 1)


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Correct p-values for their number, so that all of them together err with the same chance.

    Holm, *A simple sequentially rejective multiple test procedure*, 1979: the chance that any true
    hypothesis is rejected at a level is at most that level, whatever depends on what.

    Args:
        p_values: shape (tests,).

    Returns:
        Adjusted p-values, float64 (tests,), at most 1.
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(steps, 1.0)
    return adjusted


def crossed_mean(values: ArrayLike, error_rate: float = 0.05) -> Figure:
    """Mean over repetitions and prompts with an interval that allows for the chance of both.

    Every repetition, such as a search with another seed, is judged on the same prompts. So the
    variance of the mean has a part of the repetitions and one of the prompts, told apart as in an
    analysis of variance with two crossed random factors (Searle, Casella and McCulloch, *Variance
    Components*, 1992, section 4.3), with Satterthwaite's (1946) degrees of freedom.

    Args:
        values: finite, shape (repetitions, prompts), at least 2 prompts. Of one repetition it is
            the interval of Student's t over prompts.
        error_rate: chance that the interval misses the mean; divide it by the number of intervals
            that a conclusion looks at (Bonferroni).

    Returns:
        The figure; its ``n`` is the number of prompts.

    Raises:
        ValueError: another shape, or values that are not finite.
    """
    table = np.asarray(values, dtype=np.float64)
    if table.ndim != 2 or table.shape[0] < 1 or not np.isfinite(table).all():
        raise ValueError(f"Values must be finite, (repetitions, prompts); got {table.shape}.")
    _checked(table.T)
    (rows, columns), centre = table.shape, float(table.mean())
    by_row, by_column = table.mean(axis=1), table.mean(axis=0)
    squares = [rows * float(np.var(by_column, ddof=1))]
    freedom, signs = [columns - 1], [1.0]
    if rows > 1:
        rest = table - by_row[:, None] - by_column + centre
        both = (rows - 1) * (columns - 1)
        squares += [columns * float(np.var(by_row, ddof=1)), float(np.square(rest).sum()) / both]
        freedom, signs = [columns - 1, rows - 1, both], [1.0, 1.0, -1.0]
    # Below the larger part alone it is only because the rest was overestimated.
    total = max(float(np.dot(signs, squares)), *squares[:2], 0.0)
    if total == 0.0:
        return Figure(mean=centre, low=centre, high=centre, n=columns)
    own = total**2 / sum(s**2 / f for s, f in zip(squares, freedom, strict=True))
    half = _t_quantile(1 - error_rate / 2, own) * math.sqrt(total / table.size)
    return Figure(mean=centre, low=centre - half, high=centre + half, n=columns)


def _t_quantile(probability: float, freedom: float) -> float:
    """Quantile above 0.5 of Student's t, whose density in atan(t / sqrt(v)) is cos^(v - 1)."""
    angles = np.linspace(0.0, math.pi / 2, 20_001)
    density = np.cos(angles) ** (min(max(freedom, 1.0), 1e5) - 1)
    areas = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    angle = float(np.interp((2 * probability - 1) * areas[-1], areas, angles))
    return math.sqrt(min(max(freedom, 1.0), 1e5)) * math.tan(angle)
