"""Where the variance of scores comes from, and what it says about a search.

Candidates are crossed with prompts, and every prompt has noise seeds that all candidates share:

    score = mean + candidate + prompt + noise (in prompt) + candidate x prompt + residual

The effects of prompts and of their noise are common to all candidates, so they cancel in a
generation. The components are estimated from mean squares (Searle, Casella and McCulloch, Variance
Components, 1992, chapter 4), which is unbiased in a balanced table.
"""

from __future__ import annotations

import math

import numpy as np

from calibri.arrays import Scores
from calibri.results import VarianceComponents

# With fewer prompts a search fits those of its bucket, and decays late in a run.
_BUCKETS = (6, 8, 12, 16, 24, 32, 48, 64)
_LEAST_POPSIZE = 8
# A split must promise this much more than the configured one to replace it.
_WORTH = 1.1


def variance_components(table: Scores) -> VarianceComponents:
    """Estimate the components of a balanced table.

    Args:
        table: finite scores, (candidates, prompts, seeds), at least 2 of each.

    Returns:
        Unbiased estimates; one that is truly 0 comes out negative half of the time.

    Raises:
        ValueError: another shape, or a score that is not finite.
    """
    if table.ndim != 3 or min(table.shape) < 2:
        raise ValueError(f"Needs at least 2 candidates, prompts and seeds; got {table.shape}.")
    if not np.isfinite(table).all():
        raise ValueError("Scores must be finite.")
    c, p, s = table.shape
    squares = _mean_squares(table)
    residual, crossed = squares["residual"], squares["crossed"]
    return VarianceComponents(
        candidate=(squares["candidate"] - crossed) / (p * s),
        prompt=(squares["prompt"] - crossed - squares["noise"] + residual) / (c * s),
        noise=(squares["noise"] - residual) / c,
        candidate_prompt=(crossed - residual) / s,
        residual=residual,
    )


def _mean_squares(table: Scores) -> dict[str, float]:
    c, p, s = table.shape
    mean = table.mean()
    candidates, prompts = table.mean(axis=(1, 2)), table.mean(axis=(0, 2))
    noises, cells = table.mean(axis=0), table.mean(axis=2)
    crossed = cells - candidates[:, None] - prompts + mean
    residual = table - cells[:, :, None] - noises + prompts[:, None]
    return {
        "candidate": float(p * s * np.var(candidates, ddof=1)),
        "prompt": float(c * s * np.var(prompts, ddof=1)),
        "noise": float(c * ((noises - prompts[:, None]) ** 2).sum() / (p * (s - 1))),
        "crossed": float(s * (crossed**2).sum() / ((c - 1) * (p - 1))),
        "residual": float((residual**2).sum() / ((c - 1) * p * (s - 1))),
    }


def reliability(components: VarianceComponents, bucket_size: int, seeds: int) -> float:
    """Share of the variance of candidates' bucket means that is true.

    Args:
        components: estimated; negative ones count as 0.
        bucket_size: prompts of a generation.
        seeds: images per prompt.

    Returns:
        From 0 to 1; 0 when candidates do not differ.
    """
    candidate = max(components.candidate, 0.0)
    crossed = max(components.candidate_prompt, 0.0) / bucket_size
    residual = max(components.residual, 0.0) / (bucket_size * seeds)
    return candidate / (candidate + crossed + residual) if candidate > 0 else 0.0


def expected_tau(reliability: float) -> float:
    """Kendall's tau of bucket means with the true means, for normally distributed candidates."""
    return 2.0 / math.pi * math.asin(math.sqrt(reliability))


def expected_gain(
    components: VarianceComponents, popsize: int, bucket_size: int, seeds: int, dimension: int
) -> float:
    """Squared cosine between the step of a generation and the true gradient, to first order.

    All candidates see the same prompts, so what a bucket prefers to the average prompt pulls every
    candidate the same way: only more prompts average it out. The residual differs from candidate to
    candidate, so a larger population averages it out too. A linear step from ``popsize`` candidates
    with reliability r has the squared cosine m / (n + m), m = popsize * r, with the gradient of its
    bucket.

    Args:
        components: estimated; negative ones count as 0.
        popsize: candidates.
        bucket_size: prompts, the same for all candidates.
        seeds: images per prompt.
        dimension: n, numbers that are searched.
    """
    candidate = max(components.candidate, 0.0)
    if candidate == 0.0:
        return 0.0
    shared = candidate + max(components.candidate_prompt, 0.0) / bucket_size
    total = shared + max(components.residual, 0.0) / (bucket_size * seeds)
    effective = popsize * shared / total
    return candidate / shared * effective / (dimension + effective)


def recommend(
    components: VarianceComponents,
    *,
    popsize: int,
    bucket_size: int,
    seeds: int,
    dimension: int,
    num_prompts: int,
) -> tuple[int, int]:
    """Split the images of a generation into candidates and prompts.

    Args:
        components: estimated.
        popsize: candidates as configured.
        bucket_size: prompts as configured; their product is the budget of a generation.
        seeds: images per prompt.
        dimension: numbers that are searched.
        num_prompts: there are no larger buckets.

    Returns:
        (popsize, bucket_size) with the highest ``expected_gain`` and no more images; the
        configured one unless another promises a tenth more.
    """
    budget = popsize * bucket_size
    splits = [(budget // b, b) for b in _BUCKETS if b <= num_prompts]

    def gain(split: tuple[int, int]) -> float:
        return expected_gain(components, *split, seeds, dimension)

    possible = [split for split in splits if split[0] >= _LEAST_POPSIZE]
    best = max(possible, key=gain, default=(popsize, bucket_size))
    return best if gain(best) > _WORTH * gain((popsize, bucket_size)) else (popsize, bucket_size)
