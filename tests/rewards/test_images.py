import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor

from calibri.rewards.images import (
    BILINEAR,
    CLIP_MEAN,
    CLIP_STD,
    FLOOR,
    ROUND,
    center_crop,
    clip_pixels,
    letterbox_pixels,
    normalise,
    normalise_float,
    pad_to_square,
    resize_short_side,
    to_pil,
)
from tests.rewards.tiny_models import pictures

SIZES = [(40, 40), (40, 61), (61, 40), (33, 57), (16, 16), (10, 31), (224, 150)]


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_clip_pixels_are_those_of_the_pil_processor(height: int, width: int) -> None:
    images = pictures(2, height, width)
    # transformers 5 has it beside one for tensors, under a name that says so.
    kind = getattr(transformers, "CLIPImageProcessorPil", transformers.CLIPImageProcessor)
    processor = kind(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    expected = processor([to_pil(x) for x in images], return_tensors="pt").pixel_values
    torch.testing.assert_close(clip_pixels(images, 16), expected, atol=1e-6, rtol=0)


def test_bilinear_or_tensor_resizing_is_another_preprocessing() -> None:
    image = pictures(1, 40, 40)
    cubic = clip_pixels(image, 16)
    linear = normalise(resize_short_side(image, 16, BILINEAR), CLIP_MEAN, CLIP_STD)[0]
    tensor = torch.nn.functional.interpolate(
        image.float() / 255, (16, 16), mode="bicubic", antialias=True
    )
    assert (cubic[0] - linear).abs().max() > 0.05
    assert (cubic - normalise_float(tensor, CLIP_MEAN, CLIP_STD)).abs().max() > 1e-3


@pytest.mark.parametrize(("width", "floor", "around"), [(17, 0, 0), (19, 1, 2), (20, 2, 2)])
def test_the_crop_of_an_odd_remainder_begins_where_the_original_says(
    width: int, floor: int, around: int
) -> None:
    row = torch.arange(width).expand(1, 3, 16, width)
    assert center_crop(row, 16, FLOOR)[0, 0, 0].tolist() == list(range(floor, floor + 16))
    assert center_crop(row, 16, ROUND)[0, 0, 0].tolist() == list(range(around, around + 16))
    assert torch.equal(center_crop(row.mT, 16, ROUND), center_crop(row, 16, ROUND).mT)


@pytest.mark.parametrize(("height", "width"), [(5, 9), (9, 5), (6, 6), (4, 9)])
def test_a_square_has_the_image_in_its_middle_and_the_colour_around(
    height: int, width: int
) -> None:
    images = pictures(2, height, width)
    side = max(height, width)
    square = Image.new("RGB", (side, side), (1, 2, 3))
    square.paste(to_pil(images[1]), ((side - width) // 2, (side - height) // 2))
    expected = torch.from_numpy(np.asarray(square).copy()).permute(2, 0, 1)
    assert torch.equal(pad_to_square(images, (1, 2, 3))[1], expected)


def black(size: int) -> Tensor:
    value = -torch.tensor(CLIP_MEAN) / torch.tensor(CLIP_STD)
    return value.view(3, 1, 1).expand(3, size, size)


def test_a_letterboxed_image_keeps_its_content_and_has_black_borders() -> None:
    image = pictures(1, 20, 32)
    pixels = letterbox_pixels(image, 16)[0]
    assert pixels.shape == (3, 16, 16)
    assert torch.equal(pixels[:, :3], black(16)[:, :3])
    assert torch.equal(pixels[:, 13:], black(16)[:, 13:])
    inner = torch.nn.functional.interpolate(
        image.float() / 255, (10, 16), mode="bicubic", antialias=True
    )
    expected = normalise_float(inner, CLIP_MEAN, CLIP_STD)[0]
    torch.testing.assert_close(pixels[:, 3:13], expected)


def test_letterboxing_is_not_short_side_and_crop() -> None:
    image = pictures(1, 20, 32)
    assert (letterbox_pixels(image, 16) - clip_pixels(image, 16)).abs().max() > 0.5


def test_letterboxing_pads_an_image_whose_long_side_already_fits() -> None:
    pixels = letterbox_pixels(pictures(1, 16, 8), 16)[0]
    assert torch.equal(pixels[:, :, :4], black(16)[:, :, :4])


def test_letterbox_sizes_round_to_even_as_the_original() -> None:
    # 5 * 16 / 32 = 2.5 becomes 2 rows, 7 * 16 / 32 = 3.5 becomes 4.
    white = torch.full((1, 3, 7, 32), 255, dtype=torch.uint8)
    rows = [
        int((letterbox_pixels(white[:, :, :height], 16)[0, 0, :, 8] > 1).sum()) for height in (5, 7)
    ]
    assert rows == [2, 4]


def test_to_pil_keeps_every_pixel() -> None:
    image = pictures(1, 5, 7)[0]
    picture = to_pil(image)
    assert isinstance(picture, Image.Image)
    assert picture.getpixel((6, 2)) == tuple(image[:, 2, 6].tolist())
