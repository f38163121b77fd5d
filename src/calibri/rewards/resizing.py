"""PIL's resize of bytes, bit for bit, with a gradient.

Resampling is two matrix products. PIL has their weights in fixed point and rounds to bytes after
each (Pillow, ``src/libImaging/Resample.c``), so their order shows: rows first, as in every Pillow
that published scores were made with (Pillow 13 chooses by cost). A gradient passes over rounding
as if it were not there; what was cut to black or white has none.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Resampling
from torch import Tensor

Array = NDArray[np.float64]
Interval = tuple[float, float]
Bands = tuple[tuple[int, Array], ...]

_PRECISION_BITS = 22  # of 32, less 8 of a byte and 2 for weights below 0 and above 1
_ONE = float(1 << _PRECISION_BITS)
_BAND = 32  # pixels that are made together; a wider band multiplies more zeros


def resize(
    images: Tensor,
    size: tuple[int, int],
    resample: Resampling = Resampling.BICUBIC,
    box: tuple[float, float, float, float] | None = None,
) -> Tensor:
    """Resize images as PIL does.

    Args:
        images: (N, C, H, W), uint8 or floats that hold bytes, 0 to 255.
        size: height and width of the result.
        resample: nearest, box, bilinear, Hamming, bicubic or Lanczos; when downscaling a filter is
            stretched, which antialiases.
        box: the part to take, as PIL has it: left, upper, right, lower; None for all.

    Returns:
        float64 (N, C, height, width) that holds PIL's bytes, with a gradient for floats.
    """
    height, width = images.shape[-2:]
    left, upper, right, lower = box or (0, 0, width, height)
    along_rows = _weights(resample, width, size[1], (left, right))
    along_columns = _weights(resample, height, size[0], (upper, lower))
    # One at a time: in float64 a batch of large images is heavy.
    return torch.stack([_both_passes(image, along_rows, along_columns) for image in images])


def rounded(values: Tensor) -> Tensor:
    """Round to whole numbers, a half up; the gradient is that of ``values``."""
    return values + (torch.floor(values + 0.5) - values).detach()


def _both_passes(image: Tensor, along_rows: Bands | None, along_columns: Bands | None) -> Tensor:
    across = _one_pass(image.double(), along_rows)
    return _one_pass(across.mT, along_columns).mT


def _one_pass(values: Tensor, bands: Bands | None) -> Tensor:
    """Mix the last axis, and round to bytes."""
    if bands is None:
        return values
    # Sums of bytes times whole numbers of 22 bits: exact in float64, in whatever order.
    products = [
        values[..., first : first + len(weights)] @ torch.from_numpy(weights).to(values.device)
        for first, weights in bands
    ]
    mixed = torch.cat(products, dim=-1) / _ONE
    # Cut after rounding, so that a flat white area, whose weights sum to nearly one, is not cut.
    return rounded(mixed).clamp(0, 255)


@lru_cache(maxsize=64)
def _weights(resample: Resampling, count: int, wanted: int, taken: Interval) -> Bands | None:
    """Fixed-point weights of a pass, whole numbers; None where PIL makes none.

    A pixel is mixed of a few neighbours, so the matrix is cut into bands: where each begins, and
    its weights, (pixels there are, pixels to make).

    Args:
        resample: the filter.
        count: pixels there are.
        wanted: pixels to make.
        taken: where they are taken from, in pixels from the edge.
    """
    if count == wanted and taken[0] == 0 and taken[1] == count:
        return None
    # PIL holds a box in 32 bits.
    start, stop = np.float32(taken[0]), np.float32(taken[1])
    scale = float(stop - start) / wanted
    if resample is Resampling.NEAREST:
        return _bands(_nearest(count, wanted, float(start), scale) * _ONE)
    centers: Array = float(start) + (np.arange(wanted, dtype=np.float64) + 0.5) * scale
    exact = _filtered(resample, count, centers, scale)
    fixed: Array = np.trunc(exact * _ONE + np.copysign(0.5, exact))
    return _bands(fixed.T)


def _bands(weights: Array) -> Bands:
    parts = []
    for first in range(0, weights.shape[1], _BAND):
        part = weights[:, first : first + _BAND]
        (used,) = part.any(axis=1).nonzero()
        parts.append((int(used[0]), np.ascontiguousarray(part[used[0] : used[-1] + 1])))
    return tuple(parts)


def _nearest(count: int, wanted: int, start: float, scale: float) -> Array:
    steps = np.full(wanted, scale)
    steps[0] = start + 0.5 * scale
    # Summed step by step, as PIL does: a product would round otherwise.
    return np.eye(count)[:, np.cumsum(steps).astype(int)]


def _filtered(resample: Resampling, count: int, centers: Array, scale: float) -> Array:
    """Weights of a filter around each centre, which sum to 1: (centers, count)."""
    kernel, support = _FILTERS[resample]
    stretch = max(scale, 1.0)
    places, middle = np.arange(count), centers[:, None]
    reach = support * stretch
    first = (middle - reach + 0.5).astype(int)
    last = (middle + reach + 0.5).astype(int)
    inside = (places >= first) & (places < last)
    weights = np.where(inside, kernel((places - middle + 0.5) * (1.0 / stretch)), 0.0)
    # Summed one after the other, as PIL does: another order would round otherwise.
    return np.asarray(weights / np.cumsum(weights, axis=1)[:, -1:])


def _box(x: Array) -> Array:
    return np.where((x > -0.5) & (x <= 0.5), 1.0, 0.0)


def _triangle(x: Array) -> Array:
    return np.maximum(1.0 - np.abs(x), 0.0)


def _hamming(x: Array) -> Array:
    # PIL has the two constants in 32 bits.
    window = float(np.float32(0.54)) + float(np.float32(0.46)) * np.cos(np.abs(x) * np.pi)
    return np.where(np.abs(x) < 1, _sinc(np.abs(x)) * window, 0.0)


def _cubic(x: Array) -> Array:
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * -0.5
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def _lanczos(x: Array) -> Array:
    return np.where((x >= -3) & (x < 3), _sinc(x) * _sinc(x / 3), 0.0)


def _sinc(x: Array) -> Array:
    turn = np.where(x == 0, 1.0, x * np.pi)
    return np.where(x == 0, 1.0, np.sin(turn) / turn)


_FILTERS: dict[Resampling, tuple[Callable[[Array], Array], float]] = {
    Resampling.BOX: (_box, 0.5),
    Resampling.BILINEAR: (_triangle, 1.0),
    Resampling.HAMMING: (_hamming, 1.0),
    Resampling.BICUBIC: (_cubic, 2.0),
    Resampling.LANCZOS: (_lanczos, 3.0),
}
