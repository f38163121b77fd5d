"""Attention checks: an image of the prompt beside the ruin of another prompt's image."""

from __future__ import annotations

import numpy as np
from PIL import Image

_TILES = 8  # along each side
_NOISE = 0.35  # share of what noise replaces


def ruined(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Shuffle the tiles of an image and mix noise into it: nobody prefers that.

    Args:
        picture: RGB, of any size.
        rng: of the shuffling and the noise.

    Returns:
        RGB of the same size.
    """
    pixels = np.asarray(picture.convert("RGB"), dtype=np.float64)
    rows = _shuffled(pixels.shape[0], rng)
    columns = _shuffled(pixels.shape[1], rng)
    mixed = pixels[rows][:, columns]
    noise = rng.integers(0, 256, size=pixels.shape)
    return Image.fromarray(((1 - _NOISE) * mixed + _NOISE * noise).astype(np.uint8))


def _shuffled(length: int, rng: np.random.Generator) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    tiles = np.array_split(np.arange(length), _TILES)
    return np.concatenate([tiles[i] for i in rng.permutation(len(tiles))])
