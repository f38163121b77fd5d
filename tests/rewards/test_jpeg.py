import io

import pytest
import torch
from PIL import Image

from calibri.rewards.jpeg import (
    JpegCompressibility,
    JpegIncompressibility,
    bits_per_pixel,
    jpeg_bytes,
)
from calibri.rewards.reward import Reward
from tests.rewards.tiny_models import pictures

IMAGES = pictures(3, 40, 56)


def size(index: int, quality: int = 95) -> int:
    buffer = io.BytesIO()
    Image.fromarray(IMAGES[index].permute(1, 2, 0).numpy()).save(buffer, "jpeg", quality=quality)
    return len(buffer.getvalue())


def test_sizes_are_those_of_files_of_quality_95() -> None:
    assert jpeg_bytes(IMAGES).tolist() == [size(i) for i in range(3)]
    assert size(0) > size(0, quality=75)


def test_the_two_rewards_are_opposite_and_in_thousands_of_bytes() -> None:
    busy = JpegIncompressibility().score(IMAGES, ["a"] * 3)
    assert busy.tolist() == pytest.approx([size(i) / 1000 for i in range(3)])
    assert torch.equal(JpegCompressibility().score(IMAGES, ["b"] * 3), -busy)
    assert "minus kB" in JpegCompressibility().info.unit


def test_bits_per_pixel_are_eight_bytes_over_the_pixels() -> None:
    expected = [8 * size(i) / (40 * 56) for i in range(3)]
    assert bits_per_pixel(IMAGES).tolist() == pytest.approx(expected)
    assert JpegIncompressibility("bpp").score(IMAGES, ["a"] * 3).tolist() == pytest.approx(expected)


def test_noise_is_busier_than_a_flat_image() -> None:
    flat = torch.full((1, 3, 32, 32), 100, dtype=torch.uint8)
    noise = torch.randint(256, flat.shape, generator=torch.Generator().manual_seed(0)).byte()
    scores = JpegIncompressibility().score(torch.cat([flat, noise]), ["", ""])
    assert scores[1] > 2 * scores[0]


def test_the_encoder_is_named_beside_the_numbers() -> None:
    reward = JpegCompressibility()
    assert isinstance(reward, Reward)
    assert "Pillow" in reward.info.variant
    assert "libjpeg" in reward.info.variant
