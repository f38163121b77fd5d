"""How well an image compresses as JPEG: a reward without a model, for trying out a search."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Literal

import PIL
import torch
from PIL import features
from torch import Tensor

from calibri.rewards.images import to_pil
from calibri.rewards.reward import BatchedReward, RewardInfo

QUALITY = 95
Unit = Literal["kB", "bpp"]


def jpeg_bytes(images: Tensor) -> Tensor:
    """Bytes of each image as a JPEG of quality 95: uint8 (N, 3, H, W) to float (N,)."""
    return torch.tensor([float(_size(image)) for image in images])


def _size(image: Tensor) -> int:
    buffer = io.BytesIO()
    to_pil(image).save(buffer, format="JPEG", quality=QUALITY)
    return buffer.tell()


def bits_per_pixel(images: Tensor) -> Tensor:
    """Bits of each image as a JPEG of quality 95 over its pixels: float (N,)."""
    return 8 * jpeg_bytes(images) / (images.shape[-1] * images.shape[-2])


class JpegIncompressibility(BatchedReward):
    """Size as a JPEG of quality 95; higher is busier. Ignores the prompt.

    Args:
        unit: ``"kB"`` (1000 bytes), or ``"bpp"`` for bits per pixel, which sizes share.
        batch_size: images per batch.
    """

    _name = "jpeg-incompressibility"
    _sign = 1.0

    def __init__(self, unit: Unit = "kB", *, batch_size: int = 256) -> None:
        super().__init__(batch_size)
        self._unit = unit
        sign = "" if self._sign > 0 else "minus "
        self.info = RewardInfo(
            name=self._name,
            variant=f"Pillow {PIL.__version__}, libjpeg {features.version('jpg')}, quality "
            f"{QUALITY}",
            range=(0.0, float("inf")) if self._sign > 0 else (-float("inf"), 0.0),
            unit=sign + {"kB": "kB", "bpp": "bits per pixel"}[unit],
        )

    def score_batch(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Score one batch: uint8 (N, 3, H, W) to float (N,)."""
        sizes = jpeg_bytes(images) / 1000 if self._unit == "kB" else bits_per_pixel(images)
        return self._sign * sizes


class JpegCompressibility(JpegIncompressibility):
    """Minus the size as a JPEG of quality 95; higher is smoother. Ignores the prompt."""

    _name = "jpeg-compressibility"
    _sign = -1.0
