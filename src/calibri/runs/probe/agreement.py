"""Whether cheaper images rank candidates as full ones do.

A search needs the order of candidates, not their scores: fewer steps may serve if they order
candidates as the full number does, and if they do not reward being far from the start.
"""

from __future__ import annotations

import numpy as np

from calibri.arrays import Scores
from calibri.results import Figure
from calibri.seeds import derive_seed

ACCEPTED_TAU = 0.8
# The bias may change by this share of the spread of the candidates' true means.
ACCEPTED_BIAS = 0.5
_RESAMPLES = 500


def kendall_tau(a: Scores, b: Scores) -> float:
    """Kendall's tau-b of two rankings (Kendall 1945), which corrects for ties.

    Args:
        a: one number per candidate.
        b: one number per candidate, in the same order.

    Returns:
        From -1 to 1; 0 when all entries of one are alike.

    Raises:
        ValueError: the shapes differ, or there are fewer than 2 candidates.
    """
    if a.shape != b.shape or a.ndim != 1 or len(a) < 2:
        raise ValueError(f"Needs two rankings of the same candidates; got {a.shape}, {b.shape}.")
    upper = np.triu_indices(len(a), 1)
    x = np.sign(a[:, None] - a)[upper]
    y = np.sign(b[:, None] - b)[upper]
    pairs = np.sqrt((x**2).sum() * (y**2).sum())
    return float((x * y).sum() / pairs) if pairs else 0.0


def rank_correlation(cheap: Scores, full: Scores, seed: int) -> Figure:
    """Kendall's tau of candidate means, with an interval over prompts.

    Args:
        cheap: scores, (candidates, prompts).
        full: scores of the same candidates and prompts.
        seed: of the bootstrap, which draws prompts for both alike.

    Returns:
        Tau of the means and its percentile 95% interval. Resampled means are noisier than the
        means themselves, so that the interval errs on the low side.
    """
    rng = np.random.default_rng(derive_seed(seed, "tau"))
    count = full.shape[1]
    taus = []
    for _ in range(_RESAMPLES):
        drawn = rng.integers(count, size=count)
        taus.append(kendall_tau(cheap[:, drawn].mean(axis=1), full[:, drawn].mean(axis=1)))
    low, high = np.quantile(taus, [0.025, 0.975])
    tau = kendall_tau(cheap.mean(axis=1), full.mean(axis=1))
    return Figure(mean=tau, low=float(low), high=float(high), n=count)


def bias_slope(cheap: Scores, full: Scores, distances: Scores, seed: int) -> Figure:
    """How the error of the cheap scores changes with the distance from the start.

    Args:
        cheap: scores, (candidates, prompts), among them candidates at several distances, such as
            the start itself at 0.
        full: scores of the same candidates and prompts.
        distances: of each candidate from the start, in units of the first step size.
        seed: of the bootstrap.

    Returns:
        Slope of ``cheap - full`` over the distance, with its 95% interval over prompts.
    """
    centred = distances - distances.mean()
    slopes = centred @ (cheap - full) / (centred @ centred)  # of each prompt
    rng = np.random.default_rng(derive_seed(seed, "bias"))
    drawn = rng.integers(len(slopes), size=(_RESAMPLES, len(slopes)))
    low, high = np.quantile(slopes[drawn].mean(axis=1), [0.025, 0.975])
    return Figure(mean=float(slopes.mean()), low=float(low), high=float(high), n=len(slopes))


def refusal(tau: Figure, bias: Figure, spread: float) -> str:
    """Say why a fidelity cannot serve the search, or nothing when it can.

    The lower end of tau's interval decides: a wrong ranking spoils a whole search, and a refused
    fidelity only costs what the search costs anyway.

    Args:
        tau: rank correlation with the full fidelity.
        bias: slope of the error over the distance.
        spread: standard deviation of the candidates' true means at full fidelity.
    """
    if tau.low < ACCEPTED_TAU:
        return f"the lower end of tau, {tau.low:.2f}, is under {ACCEPTED_TAU}"
    allowed = ACCEPTED_BIAS * spread
    if bias.low > allowed or bias.high < -allowed:
        return (
            f"its error changes by {bias.mean:+.3g} from the original model to a candidate, more "
            f"than half the spread of the candidates, {spread:.3g}"
        )
    return ""
