"""Bounds of a search: a penalty that keeps its distribution from drifting off beyond them.

A candidate is scored where it was clipped to. The distribution must learn from the point that was
drawn all the same: clipped points do not follow its covariance, and taken for draws they make it
degenerate and its step size explode. Beyond a bound the score is flat, though, so draws out there
pay for their distance. The penalty and how it adapts are those of Hansen et al. 2009 (IEEE TEC
13(1), section IV), in the form that pycma has come to (``BoundPenalty``), which tests hold it to.
"""

from __future__ import annotations

import math

import numpy as np

from calibri.arrays import Scores, Vector

# Standard deviations that a mean walks beyond a bound by chance before the bound pulls harder.
_FREE_DISTANCE = 3.0
# No coordinate needs a wider distribution to cover its range (``maxstd_boundrange`` of pycma).
_LARGEST_SHARE = 1 / 3


class BoundPenalty:
    """What draws beyond their bounds pay; it adapts to the spread of the scores.

    Args:
        bounds: lowest and highest value of each coordinate, float64 (n, 2).
        units: first standard deviations of the coordinates at a step size of 1, float64 (n,);
            distances are in these, so that it does not matter how coordinates are scaled.
    """

    def __init__(self, bounds: Vector, units: Vector) -> None:
        self._low, self._high = bounds.T
        self._units = units
        self._adapted = 0
        self._spreads: list[float] = []
        self._weights: Vector | None = None

    def clipped(self, points: Vector) -> Vector:
        """Move points, float64 (..., n), to the nearest ones within the bounds."""
        return np.asarray(np.clip(points, self._low, self._high), dtype=np.float64)

    def penalised(
        self, draws: Vector, scores: Scores, mean: Vector, deviations: Vector, mu_eff: float
    ) -> Scores:
        """Scores less the penalty of each draw; those within the bounds keep theirs.

        Args:
            draws: as they were drawn, float64 (k, n).
            scores: of the draws where they were clipped to, higher is better, float64 (k,).
            mean: of the distribution that they are from, float64 (n,).
            deviations: standard deviations of its coordinates, above 0, float64 (n,).
            mu_eff: candidates' worth of information in the weights of recombination.
        """
        self._adapt(scores, mean, deviations, mu_eff)
        if self._weights is None:
            return scores
        beyond = (draws - self.clipped(draws)) / self._units
        return scores - np.square(beyond) @ self._weights / len(mean)

    def _adapt(self, scores: Scores, mean: Vector, deviations: Vector, mu_eff: float) -> None:
        n = len(mean)
        spread = self._typical_spread(scores, deviations)
        beyond = np.abs(mean - self.clipped(mean)) / deviations
        # The second time corrects a spread that came of a step size out of proportion.
        if spread > 0 and beyond.any() and (self._weights is None or self._adapted == 1):
            self._weights = np.full(n, 2 * spread)
        self._adapted += 1
        if self._weights is None:
            return
        damping = min(1.0, mu_eff / (10 * n))
        excess = np.maximum(0.0, beyond - _FREE_DISTANCE * max(1.0, math.sqrt(n) / mu_eff))
        self._weights = self._weights * np.exp(damping * np.tanh(excess / 3) / 2)
        too_heavy = self._weights > 5 * spread
        self._weights[too_heavy] *= math.exp(-damping / 3)

    def _typical_spread(self, scores: Scores, deviations: Vector) -> float:
        """Median over the last generations of the spread of scores for a squared distance of 1."""
        costs, places = np.sort(-scores), len(scores) + 1
        between = costs[3 * places // 4] - costs[places // 4]
        spread = float(between / np.mean(np.square(deviations / self._units)))
        if 0 < spread < math.inf:
            self._spreads.insert(0, spread)
            del self._spreads[20 + 3 * len(deviations) // len(scores) :]
        return float(np.median(self._spreads)) if self._spreads else 0.0

    def shrinkage(self, sigma: float, deviations: Vector) -> float:
        """Factor on the step size that lets the typical coordinate stay within its range.

        It holds for the step size by itself too, which would rise while the covariance falls where
        every draw is clipped to the same corner. It is the median that counts, so that a few narrow
        ranges among wide ones do not decide.
        """
        width = self._high - self._low
        wide = width > 0
        if not wide.any():
            return 1.0
        largest = np.maximum(deviations, sigma * self._units)
        share = float(np.median(largest[wide] / width[wide]))
        return min(1.0, _LARGEST_SHARE / share)
