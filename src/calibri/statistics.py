"""Means over prompts with bootstrap intervals; numpy only.

Images of one prompt are alike, so the prompt is the unit that is resampled (cluster bootstrap:
Davison and Hinkley, *Bootstrap Methods and their Application*, 1997, section 3.8).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calibri.errors import RewardError
from calibri.results import Figure
from calibri.seeds import derive_seed

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
