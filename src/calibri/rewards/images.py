"""Image preprocessing, pinned: published scores were made with PIL, so we resize as PIL does.

Image processors of other libraries change their backend with what is installed, and scores with it.
Every step here takes bytes, uint8 or in floats, and has a gradient for floats.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from calibri.rewards.resizing import resize

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

BICUBIC = Image.Resampling.BICUBIC
BILINEAR = Image.Resampling.BILINEAR

# Where the crop of an odd remainder begins: Hugging Face cuts down, torchvision rounds to even.
Offset = Callable[[float], int]
FLOOR: Offset = math.floor
ROUND: Offset = round


def to_pil(image: Tensor) -> Image.Image:
    """Make a PIL image of uint8 (3, H, W)."""
    return Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy(), "RGB")


def resize_short_side(images: Tensor, size: int, resample: Image.Resampling = BICUBIC) -> Tensor:
    """Resize (N, 3, H, W) so that the short side has ``size`` pixels; the long side is cut."""
    height, width = images.shape[-2:]
    short, long = min(width, height), max(width, height)
    other = int(size * long / short)
    return resize(images, (other, size) if width <= height else (size, other), resample)


def center_crop(images: Tensor, size: int, offset: Offset = FLOOR) -> Tensor:
    """Cut the central square of ``size`` pixels."""
    height, width = images.shape[-2:]
    left, top = offset((width - size) / 2), offset((height - size) / 2)
    return images[..., top : top + size, left : left + size]


def pad_to_square(images: Tensor, color: tuple[int, int, int]) -> Tensor:
    """Centre images on squares of ``color`` as large as their long side."""
    height, width = images.shape[-2:]
    side = max(width, height)
    left, top = (side - width) // 2, (side - height) // 2
    squares = images.new_tensor(color).view(3, 1, 1).expand(len(images), 3, side, side).clone()
    squares[..., top : top + height, left : left + width] = images
    return squares


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Bring bytes, (N, 3, H, W), to float32: to [0, 1], less ``mean``, over ``std``."""
    return normalise_float(images.float() / 255, mean, std)


def normalise_float(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Take ``mean`` from float (N, 3, H, W) in [0, 1] and divide by ``std``."""
    return (images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def clip_pixels(images: Tensor, size: int = 224, offset: Offset = FLOOR) -> Tensor:
    """CLIP's input: short side to ``size`` (bicubic), central square, CLIP mean and deviation.

    Args:
        images: bytes, (N, 3, H, W).
        size: side of the result.
        offset: where an odd remainder is cut: ``FLOOR`` or ``ROUND``.

    Returns:
        float32 (N, 3, size, size).
    """
    crops = center_crop(resize_short_side(images, size), size, offset)
    return normalise(crops, CLIP_MEAN, CLIP_STD)


def letterbox_pixels(images: Tensor, size: int = 224) -> Tensor:
    """HPSv2's input: long side to ``size``, black borders to a square, CLIP mean and deviation.

    Unlike the others it resizes the float tensor (bicubic, antialiased, as torchvision does), and
    the borders are black before the mean is taken, not grey (HPSv2, ``ResizeMaxSize``).

    Args:
        images: bytes, (N, 3, H, W).
        size: side of the result.

    Returns:
        float32 (N, 3, size, size).
    """
    height, width = images.shape[-2:]
    scale = size / max(height, width)
    target = (round(height * scale), round(width * scale))
    pixels = images.float().cpu() / 255
    if target != (height, width):
        pixels = functional.interpolate(pixels, target, mode="bicubic", antialias=True)
    down, right = size - target[0], size - target[1]
    pixels = functional.pad(pixels, (right // 2, right - right // 2, down // 2, down - down // 2))
    return normalise_float(pixels, CLIP_MEAN, CLIP_STD)
