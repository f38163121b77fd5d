"""When a search has nothing left to gain, and which of its vectors to return (spec section 3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from calibri.arrays import Scores
from calibri.search.error_rate import ERROR_RATE
from calibri.seeds import derive_seed

# Each look is at a fifth more checkpoints than the last.
_GROWTH = 1.2


def reached_plateau(
    gains: Sequence[float], window: int, *, tolerance: float = 0.2, error_rate: float = 0.05
) -> bool:
    """Say whether the reward hardly rises any more; call it after every checkpoint.

    Looks when there are ``2 * window`` checkpoints and whenever there are a fifth more. A look fits
    a line to the second half of the gains, and ends the search if the rise along the line is
    significantly smaller than ``tolerance`` times their mean: as many checkpoints again would then
    bring less than that share more. The level of look number j is ``error_rate / (j (j + 1))``,
    which sums to ``error_rate`` over any number of looks (alpha spending), so the chance ever to
    end a search whose last half rose by more is at most ``error_rate``, for gains with independent
    normal noise. Of the 322 searches that it would have ended in the synthetic suite
    (docs/search.md), it would have ended 1 too early.

    Args:
        gains: mean difference to the original at each checkpoint so far, always on the same
            held-out prompts and noise.
        window: fewest checkpoints that a line is fitted to, at least 4.
        tolerance: share of the gain that is not worth as many checkpoints again.
        error_rate: chance to end a search too early.

    Returns:
        False at checkpoints without a look.
    """
    look = _look(len(gains), window)
    if look == 0:
        return False
    y = np.asarray(gains[-(len(gains) // 2) :], dtype=np.float64)
    x = np.arange(len(y)) - (len(y) - 1) / 2
    slope = float(x @ y) / float(x @ x)
    excess = slope * len(y) - tolerance * float(y.mean())
    # Both terms are linear in the gains and uncorrelated.
    scale = math.sqrt(len(y) ** 2 / float(x @ x) + tolerance**2 / len(y))
    freedom = len(y) - 2
    residual = y - y.mean() - slope * x
    error = scale * math.sqrt(float(residual @ residual) / freedom)
    return excess + _t_quantile(1 - error_rate / (look * (look + 1)), freedom) * error < 0


def _look(checkpoints: int, window: int) -> int:
    """Number of the look that this many checkpoints call for, from 1; 0 for none."""
    due, look = 2 * window, 1
    while due < checkpoints:
        due, look = math.ceil(_GROWTH * due), look + 1
    return look if due == checkpoints else 0


def _t_quantile(probability: float, freedom: int) -> float:
    """Quantile of Student's t by its expansion around the normal's (Abramowitz, Stegun 26.7.5)."""
    z, v = NormalDist().inv_cdf(probability), freedom
    terms = (
        z,
        (z**3 + z) / (4 * v),
        (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2),
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3),
    )
    return sum(terms)


def select(
    differences: Scores, seed: int, *, error_rate: float = ERROR_RATE, resamples: int = 2000
) -> int | None:
    """Choose the checkpoint to return, or none if none is surely better than the original.

    The best of many checkpoints looks better than it is. A checkpoint is eligible if its mean
    difference, in standard errors, exceeds the ``1 - error_rate`` quantile of the largest one that
    chance alone gives over all checkpoints: a one-sided max-t test (Westfall and Young 1993) whose
    null distribution flips the signs of whole prompts and so keeps the correlation of checkpoints
    that share prompts. The chance to return a vector that is not better than the original is
    then at most about ``error_rate``, however many checkpoints there were.

    Args:
        differences: score minus the original's for the same prompt and noise, float64
            (checkpoints, prompts); a checkpoint that must not be chosen is left out by the caller
            or filled with -inf.
        seed: of the resampling.
        error_rate: chance to return a vector that is not better than the original.
        resamples: draws of the null distribution.

    Returns:
        The last eligible checkpoint within one standard error of the best eligible one, or None: a
        search is more likely to have gained since than to have lost what cannot be seen. On fewer
        than ``fewest_prompts`` prompts it is as good as always None.

    Raises:
        ValueError: fewer than 2 prompts, or another shape.
    """
    table = np.asarray(differences, dtype=np.float64)
    if table.ndim != 2 or table.shape[1] < 2:
        raise ValueError(
            f"Differences must be (checkpoints, 2 or more prompts); got {table.shape}."
        )
    rows = np.flatnonzero(np.isfinite(table).all(axis=1))
    if len(rows) == 0:
        return None
    kept = table[rows]
    means = kept.mean(axis=1)
    signs = np.random.default_rng(derive_seed(seed, "select")).choice(
        np.array([-1.0, 1.0]), size=(resamples, kept.shape[1])
    )
    chance = _t_values(signs @ kept.T / kept.shape[1], kept).max(axis=1)
    eligible = _t_values(means[None], kept)[0] > max(0.0, np.quantile(chance, 1 - error_rate))
    if not eligible.any():
        return None
    behind = kept[np.argmax(np.where(eligible, means, -np.inf))] - kept
    error = behind.std(axis=1, ddof=1) / math.sqrt(kept.shape[1])
    return int(rows[np.flatnonzero(eligible & (behind.mean(axis=1) <= error))[-1]])


def _t_values(means: Scores, table: Scores) -> Scores:
    # The sum of squares does not change with the signs, so the variance follows from the mean.
    count = table.shape[1]
    variance = (np.square(table).mean(axis=1) - means**2) / (count - 1)
    return np.asarray(means / np.sqrt(np.maximum(variance, np.finfo(np.float64).tiny)))
