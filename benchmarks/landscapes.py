"""Synthetic rewards whose truth is known.

The reward of coefficients x on prompt p is

    y(x, p) = b_p + f(x) + s1 a_p . (x - 1) + s2 e

with f(1) = -2 and f = 0 at the optimum, prompts that differ in how easy they are (b_p, SD 2.5) and
in which coefficients they like (a_p, standard normal), and e of every image. b and a sum to 0 over
the pool of 5,600 prompts, so that f is what the search is after.

The gradient of an image is that of f and s1 a_p, and a part of its own whose covariance has the
shape of f's curvature. Its size is as measured on the shipped pipeline without guidance (256 images
at the original, gates as they are searched): in units of the standard deviation of the difference
of an image's scores at two candidates 0.15 apart in each gate, which here is sqrt(2) s2, its root
mean square is 1.93 / 0.14 = 13.8. The lengths of all but s1 a_p vary from image to image as a
log-normal variable does whose logarithm has the standard deviation 1.16 (measured quantiles .5, .9
and .99 of the length in units of its root mean square: 0.26, 1.23, 4.4; so: 0.26, 1.15, 3.9).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from calibri.arrays import Vector
from calibri.seeds import derive_seed

NO_NOISE = "none"
NOISES = {"low": (0.25, 0.5), "mid": (0.5, 1.0), "high": (0.8, 2.0)}
LANDSCAPES = ("rotated", "near", "far", "isotropic", "rippled")
# Gates that matter as differently as those of the shipped pipeline: the logarithms of the standard
# deviations of a gate's slope have a standard deviation of 1.2.
SCALED = "scaled"
_SCALES = 1.2
_SLOPE, _HEAVY = 13.8, 1.16
# Their best point within [LOW, HIGH] lies on its border.
BOUNDED = ("bounded", "bounded-rotated", "corner")
LOW, HIGH = -1.0, 2.0
POOL = 5_600


class Problem:
    """One landscape with its pool of prompts; equal arguments give equal problems."""

    def __init__(self, landscape: str, dimension: int, seed: int) -> None:
        rng = np.random.default_rng(derive_seed(seed, "landscape", landscape, dimension))
        offset = rng.normal(size=dimension)
        rms = {"near": 0.1, "far": 0.4}.get(landscape, 0.2)
        offset *= rms * math.sqrt(dimension) / np.linalg.norm(offset)
        self.optimum = 1 + offset
        self._root = None if landscape == "isotropic" else _ill_conditioned(rng, dimension)
        if landscape == SCALED:
            self._root = np.diag(np.exp(_SCALES * rng.standard_normal(dimension)))
        self._ripple = 0.3 if landscape == "rippled" else 0.0
        self._scale, self._least = 1.0, 0.0
        self._peak = self.optimum
        if landscape in BOUNDED:
            self._bound(landscape)
        # -10 q / (10 + q) is -2 at q = 2.5.
        self._scale = 2.5 / float(self._quadratic(np.ones((1, dimension)))[0])
        pool = np.random.default_rng(derive_seed(seed, "pool", dimension))
        self._ease = _centred(2.5 * pool.standard_normal((POOL, 1)))[:, 0]
        self._taste = _centred(pool.standard_normal((POOL, dimension), dtype=np.float32))

    def _bound(self, landscape: str) -> None:
        """Move the peak beyond the bounds; the optimum is the best point within them."""
        if landscape == "corner":
            self._peak = np.full_like(self.optimum, 2 * HIGH)
        else:
            self._peak[:5] = 2.5, -1.5, 2.5, -1.5, 2.5
        if landscape != "bounded-rotated":
            self._root = None
        self.optimum = _nearest_within(self._peak, self._root)
        self._least = float(self._quadratic(self.optimum[None])[0])

    def truth(self, x: Vector) -> Vector:
        """f of rows, float64 (k, n): saturates at -10, 0 at the optimum.

        Of a bounded landscape only rows within the bounds count.
        """
        value = self._quadratic(x)
        ripples = self._ripple * np.mean(1 - np.cos(10 * math.pi * (x - self.optimum)), axis=1)
        return np.asarray(-10 * value / (10 + value) - ripples)

    def _quadratic(self, x: Vector) -> Vector:
        steps = x - self._peak
        if self._root is not None:
            steps = steps @ self._root
        return np.asarray(self._scale * (np.square(steps).sum(axis=1) - self._least))

    def slope(self, x: Vector) -> Vector:
        """Gradient of ``truth`` at one vector, float64 (n,)."""
        steps = x - self._peak
        outer = steps if self._root is None else self._root @ (self._root.T @ steps)
        value = float(self._quadratic(x[None])[0])
        waves = self._ripple * 10 * math.pi * np.sin(10 * math.pi * (x - self.optimum)) / len(x)
        return np.asarray(-200 * self._scale / (10 + value) ** 2 * outer - waves)

    def gradients(self, x: Vector, prompts: Vector, noise: str, rng: np.random.Generator) -> Vector:
        """Gradient of one image of a vector on every prompt, float64 (prompts, n)."""
        taste, chaos = NOISES.get(noise, (0.0, 0.0))
        shape = (len(prompts), len(x))
        own = rng.standard_normal(shape) / math.sqrt(len(x))
        if self._root is not None:
            own = own @ self._root.T * math.sqrt(len(x)) / np.linalg.norm(self._root)
        lengths = np.exp(_HEAVY * rng.standard_normal((len(prompts), 1)))
        liked = taste * self._taste[prompts].astype(np.float64)
        own = math.sqrt(2) * chaos * _SLOPE * math.exp(-(_HEAVY**2)) * own
        mean = math.exp(_HEAVY**2 / 2)
        return np.asarray(lengths / mean * self.slope(x) + liked + lengths * own)

    def scores(self, x: Vector, prompts: Vector, noise: str, rng: np.random.Generator) -> Vector:
        """One image of every row on every prompt, float64 (rows, prompts)."""
        taste, chaos = NOISES.get(noise, (0.0, 0.0))
        liked = (x - 1) @ self._taste[prompts].T.astype(np.float64)
        shared = self._ease[prompts] + self.truth(x)[:, None] + taste * liked
        return np.asarray(shared + chaos * rng.standard_normal(liked.shape))


def _ill_conditioned(rng: np.random.Generator, dimension: int) -> Vector:
    rotation = np.linalg.qr(rng.normal(size=(dimension, dimension)))[0]
    return np.asarray(rotation * np.sqrt(np.geomspace(1, 100, dimension)))


def _nearest_within(peak: Vector, root: Vector | None) -> Vector:
    """Best point of [LOW, HIGH]^n of a quadratic, by accelerated projected gradients."""
    x = before = np.clip(peak, LOW, HIGH)
    if root is None:
        return x
    hessian = root @ root.T
    for i in range(20_000):
        ahead = x + i / (i + 3) * (x - before)
        step = hessian @ (ahead - peak) / 100  # its largest eigenvalue
        before, x = x, np.clip(ahead - step, LOW, HIGH)
    return x


def _centred(values: Any) -> Any:
    return values - values.mean(axis=0)
