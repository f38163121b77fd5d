"""Score all candidates on a few prompts, and only the better ones on the rest of the bucket.

After Heidrich-Meisner and Igel (ICML 2009), with a fixed share in place of a bound: CMA-ES uses the
order of the candidates alone, and the order of the lower half matters least.
"""

from __future__ import annotations

import math

import numpy as np

from calibri.arrays import Scores


def first_prompts(bucket_size: int, first: float, keep: float) -> int:
    """Prompts of a bucket that score all candidates: a share of them, at least 1.

    Args:
        bucket_size: prompts of the bucket.
        first: share of the bucket, in (0, 1].
        keep: share of the candidates that stay; without a race, 1, every prompt scores all.
    """
    return bucket_size if keep == 1 else max(1, round(first * bucket_size))


def images_of_generation(popsize: int, bucket_size: int, first: float, keep: float) -> int:
    """Images of one generation with one image per prompt, those of the original included."""
    before = first_prompts(bucket_size, first, keep)
    return popsize * before + num_survivors(popsize, keep) * (bucket_size - before) + bucket_size


def num_survivors(popsize: int, keep: float) -> int:
    """Candidates that stay: a share of them, rounded up, at least 1."""
    # A hair less, so that 0.07 of 100, which floating point puts above 7, is 7.
    return max(1, math.ceil(keep * popsize - 1e-9))


def survivors(partial: Scores, keep: float) -> list[int]:
    """Choose the candidates that are scored on the rest of the bucket.

    Args:
        partial: mean score of each candidate on the first prompts, finite, float64 (popsize,).
        keep: share of the candidates that stay, in (0, 1]; rounded up.

    Returns:
        Their indices, ascending. Of equal scores the first ones stay.

    Raises:
        ValueError: a score is not finite, or the share is out of range.
    """
    if not 0 < keep <= 1:
        raise ValueError(f"The share must be above 0 and at most 1, got {keep}.")
    if not np.isfinite(partial).all():
        raise ValueError(f"Scores must be finite, got {np.asarray(partial).tolist()}.")
    order = np.argsort(-np.asarray(partial, dtype=np.float64), kind="stable")
    return sorted(int(i) for i in order[: num_survivors(len(partial), keep)])


def race_scores(partial: Scores, kept: list[int], full: Scores) -> Scores:
    """Scores to tell after a race: survivors first, the others below in their own order.

    Args:
        partial: as for ``survivors``.
        kept: what ``survivors`` returned.
        full: mean score of each survivor on the whole bucket, float64 (len(kept),).

    Returns:
        float64 (popsize,). A survivor has its full score. The best of the others is just below the
        last survivor, and the rest keep their distances to it: scores on different prompts do not
        compare, their differences do.

    Raises:
        ValueError: there is not one full score for each survivor.
    """
    if len(full) != len(kept):
        raise ValueError(f"Expected {len(kept)} full scores, got {len(full)}.")
    scores: Scores = np.array(partial, dtype=np.float64)
    left = np.ones(len(scores), dtype=bool)
    left[kept] = False
    if left.any():
        below = np.nextafter(np.min(full), -np.inf)
        scores[left] = below - (scores[left].max() - scores[left])
    scores[kept] = full
    return scores
