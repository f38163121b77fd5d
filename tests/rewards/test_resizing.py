"""Resizing against PIL itself: bytes bit for bit, gradients against its resize of floats."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.Image import Resampling
from torch import Tensor

from calibri.rewards.resizing import resize, rounded
from tests.rewards.tiny_models import pictures

Box = tuple[float, float, float, float]
SMOOTH = [Resampling.BOX, Resampling.BILINEAR, Resampling.HAMMING]
SMOOTH += [Resampling.BICUBIC, Resampling.LANCZOS]
FILTERS = [Resampling.NEAREST, *SMOOTH]


def by_pil(image: Tensor, size: tuple[int, int], resample: Resampling, box: Box | None) -> Tensor:
    """PIL on uint8 or float32 (H, W), one pass a call: rows first, as published scores were made.

    A single call of Pillow 13 takes the columns first where that is cheaper.
    """
    picture = Image.fromarray(image.numpy())
    left, upper, right, lower = box or (0, 0, *picture.size)
    if resample is Resampling.NEAREST:
        picture = picture.resize(size[::-1], resample, box)
    else:
        rows = (left, 0, right, picture.height)
        picture = picture.resize((size[1], picture.height), resample, rows)
        picture = picture.resize(size[::-1], resample, (0, upper, size[1], lower))
    return torch.from_numpy(np.asarray(picture).copy())


def some_box(rng: np.random.Generator, height: int, width: int) -> Box | None:
    """A random part at least a tenth of a pixel large."""
    left, right = np.sort(rng.uniform(0, width, 2))
    upper, lower = np.sort(rng.uniform(0, height, 2))
    large = right - left > 0.1 and lower - upper > 0.1
    return (float(left), float(upper), float(right), float(lower)) if large else None


def some_bytes(rng: np.random.Generator, height: int, width: int) -> Tensor:
    """Noise, or black and white, whose overshoots are cut after either pass."""
    image = rng.integers(0, 256, (height, width)).astype(np.uint8)
    return torch.from_numpy(image if rng.random() < 0.5 else (image > 127).astype(np.uint8) * 255)


@pytest.mark.parametrize("resample", FILTERS)
@pytest.mark.parametrize("boxed", [False, True])
def test_bytes_are_those_of_pil(resample: Resampling, boxed: bool) -> None:
    rng = np.random.default_rng(int(resample))
    for _ in range(400):
        height, width, *size = map(int, rng.integers(1, 80, 4))
        image = some_bytes(rng, height, width)
        box = some_box(rng, height, width) if boxed else None
        found = resize(image[None, None], tuple(size), resample, box)[0, 0]
        assert torch.equal(found, by_pil(image, tuple(size), resample, box).double()), (size, box)


@pytest.mark.parametrize("resample", FILTERS)
@pytest.mark.parametrize(("side", "wanted"), [(1024, 224), (1328, 448), (512, 480), (224, 336)])
def test_large_squares_are_those_of_one_call_of_pil(
    resample: Resampling, side: int, wanted: int
) -> None:
    images = pictures(1, side, side)
    picture = Image.fromarray(images[0].permute(1, 2, 0).numpy()).resize((wanted, wanted), resample)
    expected = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)
    assert torch.equal(resize(images, (wanted, wanted), resample)[0], expected.double())


def test_floats_that_hold_bytes_give_the_same() -> None:
    images = pictures(3, 31, 47)
    assert torch.equal(resize(images.float(), (12, 60)), resize(images, (12, 60)))


@pytest.mark.parametrize("resample", SMOOTH)
@pytest.mark.parametrize("boxed", [False, True])
def test_a_gradient_is_that_of_pils_resize_of_floats(resample: Resampling, boxed: bool) -> None:
    rng = np.random.default_rng(int(resample))
    for _ in range(100):
        height, width, *size = map(int, rng.integers(1, 60, 4))
        box = some_box(rng, height, width) if boxed else None
        # Mid-grey, so that nothing is cut.
        image = torch.from_numpy(rng.integers(110, 146, (height, width))).double().requires_grad_()
        direction = torch.from_numpy(rng.normal(size=(height, width)))
        weights = torch.from_numpy(rng.normal(size=size))
        (weights * resize(image[None, None], tuple(size), resample, box)[0, 0]).sum().backward()
        # The resize of floats is linear: its directional derivative is the resize of the direction.
        moved = by_pil(direction.float(), tuple(size), resample, box).double()
        scale = float(weights.norm() * moved.norm()) + 1e-9
        assert abs(float((image.grad * direction).sum() - (weights * moved).sum())) < 1e-5 * scale


def test_a_gradient_of_nearest_goes_to_the_pixel_that_was_taken() -> None:
    image = torch.arange(12.0).view(1, 1, 3, 4).requires_grad_()
    result = resize(image, (2, 7), Resampling.NEAREST)
    result.sum().backward()
    taken = torch.bincount(result.detach().flatten().long(), minlength=12)
    assert torch.equal(image.grad.flatten(), taken.float())


def test_what_is_cut_has_no_gradient_and_flat_white_has_one() -> None:
    edge = torch.zeros(1, 1, 1, 16)
    edge[..., 8:] = 255
    edge.requires_grad_()
    result = resize(edge, (1, 64), Resampling.BICUBIC)
    # Beside the edge the filter overshoots: white there stays white whatever little is changed.
    overshoot = result[0, 0, 0, 34]
    assert overshoot == 255
    assert not torch.autograd.grad(overshoot, edge, retain_graph=True)[0].any()
    (flat,) = torch.autograd.grad(result[0, 0, 0, 60], edge)
    assert float(flat.sum()) == pytest.approx(1, abs=1e-6)


def test_a_size_that_is_there_is_left_alone() -> None:
    images = pictures(2, 9, 7)
    assert torch.equal(resize(images, (9, 7)), images.double())


def test_rounding_is_passed_over() -> None:
    values = torch.tensor([0.2, 0.5, 1.7, 254.499], requires_grad=True)
    whole = rounded(values)
    assert whole.tolist() == [0, 1, 2, 254]
    whole.sum().backward()
    assert torch.equal(values.grad, torch.ones(4))
