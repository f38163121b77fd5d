"""The search distribution of CMA-ES and its update (Hansen 2016, arXiv 1604.00772); numpy only.

Equation numbers are those of that tutorial. Tests hold every step against an independent library;
with whole populations at a time, a generation of 64 candidates in 482 dimensions takes a twentieth
of that library's time, which decides how fast a run is replayed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from calibri.arrays import Vector

_SMALLEST_VARIANCE = 1e-12
# Beyond this condition eigenvectors are rounding errors, and small variances may turn negative.
_SMALLEST_RATIO = 1e-14
# exp(1) in one generation: a step-size that jumps further has left what was sampled.
_LARGEST_LOG_STEP = 1.0


@dataclass(frozen=True)
class Rates:
    """Weights and learning rates of one population size (eqs. 49-58).

    Attributes:
        weights: of the candidates from best to worst, float64 (popsize,); the negative ones are
            before their scaling by length (eq. 46).
        mu_eff: candidates' worth of information in the positive weights.
        c_1: learning rate of the rank-one update.
        c_mu: learning rate of the rank-mu update.
        c_c: backward time horizon of the path of the covariance.
        c_sigma: the same of the step size.
        d_sigma: damping of the step size.
    """

    weights: Vector
    mu_eff: float
    c_1: float
    c_mu: float
    c_c: float
    c_sigma: float
    d_sigma: float

    @classmethod
    def of(cls, dimension: int, popsize: int) -> Rates:
        """Recommended values of the tutorial (its table 1).

        Raises:
            ValueError: fewer than 4 candidates.
        """
        if popsize < 4:
            raise ValueError(f"A population needs at least 4 candidates, got {popsize}.")
        n = dimension
        raw = math.log((popsize + 1) / 2) - np.log(np.arange(1, popsize + 1))
        best, worst = raw[: popsize // 2], raw[popsize // 2 :]
        mu_eff = float(best.sum() ** 2 / (best**2).sum())
        c_1 = 2 / ((n + 1.3) ** 2 + mu_eff)
        c_mu = 2 * (mu_eff - 2 + 1 / mu_eff) / ((n + 2) ** 2 + mu_eff)
        c_mu = min(1 - c_1 - 1e-8, c_mu)
        c_sigma = (mu_eff + 2) / (n + mu_eff + 5)
        negative = min(
            1 + c_1 / c_mu,
            1 + 2 * float(worst.sum() ** 2 / (worst**2).sum()) / (mu_eff + 2),
            (1 - c_1 - c_mu) / (n * c_mu),
        )
        scale = np.where(raw >= 0, raw[raw >= 0].sum(), np.abs(raw[raw < 0]).sum() / negative)
        return cls(
            weights=raw / scale,
            mu_eff=mu_eff,
            c_1=c_1,
            c_mu=c_mu,
            c_c=(4 + mu_eff / n) / (n + 4 + 2 * mu_eff / n),
            c_sigma=c_sigma,
            d_sigma=1 + 2 * max(0.0, math.sqrt((mu_eff - 1) / (n + 1)) - 1) + c_sigma,
        )


class Distribution:
    """N(mean, sigma^2 C), moved by the order of the candidates that were drawn from it.

    Args:
        dimension: n.
        sigma: first step size.

    Attributes:
        mean: float64 (n,); 0 at first.
        sigma: step size.
        covariance: C, float64 (n, n); the identity at first.
        generation: updates so far.
    """

    def __init__(self, dimension: int, sigma: float) -> None:
        self.mean: Vector = np.zeros(dimension)
        self.sigma = sigma
        self.covariance: Vector = np.eye(dimension)
        self.generation = 0
        self._path_sigma: Vector = np.zeros(dimension)
        self._path_c: Vector = np.zeros(dimension)
        self._axes: Vector = np.eye(dimension)
        self._lengths: Vector = np.ones(dimension)
        self._decomposed = 0

    @property
    def dimension(self) -> int:
        """Coordinates of a vector."""
        return len(self.mean)

    def sample(self, normals: Vector) -> Vector:
        """Turn standard normal rows, float64 (popsize, n), into candidates (eqs. 38-40)."""
        steps = (normals * self._lengths) @ self._axes.T
        return np.asarray(self.mean + self.sigma * steps)

    def update(self, ordered: Vector) -> None:
        """Learn from candidates, float64 (popsize, n), best first; any number from 4 on."""
        rates = Rates.of(self.dimension, len(ordered))
        self.generation += 1
        steps = (ordered - self.mean) / self.sigma
        mu = len(ordered) // 2
        step = rates.weights[:mu] @ steps[:mu]
        # In the axes of C, where lengths are those of C^(-1/2) y.
        white = steps @ self._axes / self._lengths
        self.mean = self.mean + self.sigma * step
        stalled = self._update_sigma(rates, rates.weights[:mu] @ white[:mu])
        self._update_covariance(rates, steps, white, step, stalled)
        self._decompose(rates)

    def _update_sigma(self, rates: Rates, white_step: Vector) -> bool:
        """Eqs. 43-44; say whether the path is so long that the rank-one update waits (h_sigma)."""
        n, c = self.dimension, rates.c_sigma
        back = self._axes @ white_step
        growth = math.sqrt(c * (2 - c) * rates.mu_eff)
        self._path_sigma = (1 - c) * self._path_sigma + growth * back
        length = float(np.linalg.norm(self._path_sigma))
        expected = math.sqrt(n) * (1 - 1 / (4 * n) + 1 / (21 * n**2))
        log_step = c / rates.d_sigma * (length / expected - 1)
        self.sigma *= math.exp(min(_LARGEST_LOG_STEP, log_step))
        so_far = math.sqrt(1 - (1 - c) ** (2 * (self.generation + 1)))
        return length / so_far >= (1.4 + 2 / (n + 1)) * expected

    def _update_covariance(
        self, rates: Rates, steps: Vector, white: Vector, step: Vector, stalled: bool
    ) -> None:
        """Eqs. 45-47."""
        c = rates.c_c
        growth = 0.0 if stalled else math.sqrt(c * (2 - c) * rates.mu_eff)
        self._path_c = (1 - c) * self._path_c + growth * step
        squared = (white**2).sum(axis=1) + 1e-8
        weights = rates.weights * np.where(rates.weights >= 0, 1.0, self.dimension / squared)
        missing = rates.c_1 * c * (2 - c) if stalled else 0.0
        keep = 1 + missing - rates.c_1 - rates.c_mu * rates.weights.sum()
        rank_one, rank_mu = np.outer(self._path_c, self._path_c), (steps.T * weights) @ steps
        self.covariance = keep * self.covariance + rates.c_1 * rank_one + rates.c_mu * rank_mu

    def _decompose(self, rates: Rates) -> None:
        # As often as C has changed noticeably (section B.2 of the tutorial).
        wait = 1 / ((rates.c_1 + rates.c_mu) * self.dimension * 10)
        if self.generation - self._decomposed < wait:
            return
        self._decomposed = self.generation
        variances, self._axes = np.linalg.eigh((self.covariance + self.covariance.T) / 2)
        smallest = max(_SMALLEST_VARIANCE, _SMALLEST_RATIO * float(variances[-1]))
        self._lengths = np.sqrt(np.maximum(variances, smallest))
        if variances[0] < smallest:
            # What is sampled and what is learnt stay the same distribution.
            self.covariance = (self._axes * self._lengths**2) @ self._axes.T
