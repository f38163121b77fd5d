"""Shares of votes with intervals, when votes of one person and on one prompt are alike.

Interval: Wilson's, with the votes divided by the design effect and Student's t in place of the
normal quantile (as survey statistics has it: Korn and Graubard, *Survey Methodology* 24, 1998). The
design effect is the variance with participants and prompts as crossed clusters (Cameron, Gelbach
and Miller, *Journal of Business & Economic Statistics* 29, 2011, eq. 2.10: that of participants,
plus that of prompts, minus that of both at once) over the variance of independent votes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibri.results import Record

_EXACT_T = (12.706, 4.303, 3.182, 2.776, 2.571)  # 97.5%, with 1 to 5 degrees of freedom


class Share(Record):
    """A share of votes with its 95% interval, in [0, 1].

    Attributes:
        mean: the share.
        votes: how many there are.
        design_effect: how many of them are worth one independent vote; at least 1.
    """

    mean: float
    low: float
    high: float
    votes: int
    design_effect: float


@dataclass(frozen=True)
class Ballot:
    """Votes on one question.

    Attributes:
        values: 1 for the condition that is asked about, 0 for the other, 0.5 for a tie; float64,
            shape (votes,).
        participants: whose vote each is, int64, shape (votes,).
        prompts: what it is about, int64, shape (votes,).
    """

    values: NDArray[np.float64]
    participants: NDArray[np.int64]
    prompts: NDArray[np.int64]

    @property
    def clusters(self) -> tuple[int, int]:
        """Count participants and prompts."""
        return len(np.unique(self.participants)), len(np.unique(self.prompts))

    def take(self, kept: NDArray[np.bool_]) -> Ballot:
        """Keep some of the votes; ``kept`` has shape (votes,)."""
        return Ballot(self.values[kept], self.participants[kept], self.prompts[kept])


def share(ballot: Ballot) -> Share | None:
    """Share of votes for a condition, a tie being half a vote; None without votes.

    Where it cannot be seen how alike votes are, because all are the same, or of one person, or on
    one prompt, there are only as many votes as participants or prompts, whichever are fewer.
    """
    votes = ballot.values.size
    if votes == 0:
        return None
    mean = float(ballot.values.mean())
    effective = _effective_votes(ballot)
    centre, half = _wilson(mean, effective, _quantile(ballot))
    return Share(
        mean=mean,
        low=max(0.0, min(centre - half, mean)),
        high=min(1.0, max(centre + half, mean)),
        votes=votes,
        design_effect=votes / effective,
    )


def further_participants(ballot: Ballot, width: float) -> int | None:
    """Count the participants who are still needed for an interval of a width.

    More participants make everything smaller but what prompts differ by: a part of the variance
    stays for as long as the prompts do.

    Args:
        ballot: the votes so far; as many of each further participant are assumed.
        width: of the interval, from end to end, in (0, 1).

    Returns:
        0 when it is as narrow already; None where only further prompts can make it so, or nothing
        is known yet.
    """
    people, prompts = ballot.clusters
    if people < 2 or prompts < 2:
        return None
    quantile = _quantile(ballot)
    effective = _effective_votes(ballot)
    centre, _ = _wilson(float(ballot.values.mean()), effective, quantile)
    variance, target = centre * (1 - centre) / effective, (width / 2 / quantile) ** 2
    of_prompts = min(max(_clustered(ballot, "prompts") - _clustered(ballot, "both"), 0.0), variance)
    if variance <= target:
        return 0
    # Where all votes are the same it cannot be seen what prompts differ by.
    if of_prompts >= target or len(set(ballot.values.tolist())) < 2:
        return None
    return math.ceil(people * ((variance - of_prompts) / (target - of_prompts) - 1))


def agreement(ballot: Ballot, pairs: NDArray[np.int64]) -> float | None:
    """Krippendorff's alpha of raters: 1 where they agree, 0 where they might as well guess.

    A tie lies between the two sides (interval metric; Krippendorff, *Content Analysis*, 4th ed.,
    2018, section 12.3).

    Args:
        ballot: the votes.
        pairs: the pair of images that each is about, int64, shape (votes,).

    Returns:
        At most 1; None where no pair has two votes, or all votes are the same.
    """
    _, unit = np.unique(pairs, return_inverse=True)
    counts = np.bincount(unit)
    kept = counts[unit] > 1
    values, unit = ballot.values[kept], unit[kept]
    expected = _squared_differences(np.array([values.size]), values.sum(), (values**2).sum())
    if values.size < 2 or expected.sum() == 0:
        return None
    of_units = np.bincount(unit)
    sums, squares = (np.bincount(unit, weights=x) for x in (values, values**2))
    within = _squared_differences(of_units, sums, squares) / np.maximum(of_units - 1, 1)
    return float(1 - within.sum() / (expected.sum() / (values.size - 1)))


def _squared_differences(
    count: NDArray[np.int64], total: NDArray[Any], squares: NDArray[Any]
) -> NDArray[np.float64]:
    """Sum of squared differences over all ordered pairs of values."""
    result: NDArray[np.float64] = 2 * (count * squares - total**2)
    return result


def _effective_votes(ballot: Ballot) -> float:
    votes, mean = ballot.values.size, float(ballot.values.mean())
    fewest = min(ballot.clusters)
    plain = mean * (1 - mean) / votes
    if fewest < 2 or plain == 0:
        return float(fewest)
    people, prompts, both = (_clustered(ballot, by) for by in ("participants", "prompts", "both"))
    variance = max(people + prompts - both, people, prompts, both)
    # Ties make votes vary less than those of a coin; we do not count on it.
    return votes / max(variance / plain, 1.0)


def _clustered(ballot: Ballot, by: str) -> float:
    """Variance of the mean with one kind of cluster."""
    keys = {
        "participants": ballot.participants,
        "prompts": ballot.prompts,
        "both": ballot.participants * (1 + ballot.prompts.max()) + ballot.prompts,
    }
    _, cluster = np.unique(keys[by], return_inverse=True)
    sums = np.bincount(cluster, ballot.values - ballot.values.mean())
    clusters = sums.size
    return float((sums**2).sum() / ballot.values.size**2 * clusters / max(clusters - 1, 1))


def _quantile(ballot: Ballot) -> float:
    """97.5% quantile of Student's t with one degree of freedom less than the fewer clusters."""
    freedom = max(min(ballot.clusters) - 1, 1)
    if freedom <= len(_EXACT_T):
        return _EXACT_T[freedom - 1]
    z = NormalDist().inv_cdf(0.975)
    # Cornish and Fisher's expansion (Abramowitz and Stegun, 26.7.5).
    return (
        z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    )  # fmt: skip


def _wilson(mean: float, votes: float, quantile: float) -> tuple[float, float]:
    """Centre and half width of the score interval (Wilson, JASA 22, 1927)."""
    weight = quantile**2 / votes
    spread = math.sqrt(mean * (1 - mean) / votes + weight / (4 * votes))
    return (mean + weight / 2) / (1 + weight), quantile * spread / (1 + weight)
