"""Scores and images as plain JSON, and back."""

from __future__ import annotations

import base64
import math
import zlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from calibri.arrays import Scores


def encode(scores: Tensor) -> Any:
    """Scores of a unit as JSON: a list of numbers, or feature vectors, halved where that holds."""
    if scores.ndim == 1:  # None is a failed image: JSON has no NaN
        return [score if math.isfinite(score) else None for score in map(float, scores)]
    # Feature vectors are many and need no more than half precision, where that can hold them.
    fits = bool((scores[scores.isfinite()].abs() <= torch.finfo(torch.float16).max).all())
    name = "float16" if fits else "float32"
    data = scores.to(getattr(torch, name)).cpu().numpy()
    return {name: base64.b64encode(data.tobytes()).decode(), "shape": list(data.shape)}


def decode(stored: Any) -> Scores:
    """Read what ``encode`` gave: float64, NaN for a failed image."""
    if isinstance(stored, list):
        return np.array([np.nan if score is None else score for score in stored])
    name = "float32" if "float32" in stored else "float16"
    data = np.frombuffer(base64.b64decode(stored[name]), dtype=name)
    return np.asarray(data.reshape(stored["shape"]), dtype=np.float64)


def encode_exact(values: Scores) -> dict[str, Any]:
    """Numbers of any shape as JSON, every bit of them."""
    data = np.ascontiguousarray(values, dtype="<f8")
    return {"float64": base64.b64encode(data.tobytes()).decode(), "shape": list(data.shape)}


def decode_exact(stored: Any) -> Scores:
    """Read what ``encode_exact`` gave."""
    data = np.frombuffer(base64.b64decode(stored["float64"]), dtype="<f8")
    return np.array(data.reshape(stored["shape"]), dtype=np.float64)


def encode_images(images: Tensor) -> dict[str, Any]:
    """Images, uint8 of any shape, as JSON; no byte is lost."""
    data = zlib.compress(images.contiguous().numpy().tobytes(), level=1)
    return {"uint8": base64.b64encode(data).decode(), "shape": list(images.shape)}


def decode_images(stored: dict[str, Any]) -> Tensor:
    """Read what ``encode_images`` gave."""
    data = bytearray(zlib.decompress(base64.b64decode(stored["uint8"])))
    return torch.frombuffer(data, dtype=torch.uint8).reshape(stored["shape"])
