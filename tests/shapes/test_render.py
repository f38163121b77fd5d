import pytest
import torch
from torch import Tensor

from calibri.shapes.render import (
    BACKGROUND_RANGE,
    COLOR_JITTER,
    IMAGE_SIZE,
    PALETTE,
    render,
    render_batch,
)
from calibri.shapes.scenes import COLORS, RELATIONS, SHAPES, SIZES, Scene, Thing, sample_scene


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def scenes(count: int) -> list[Scene]:
    draw = generator(7)
    return [sample_scene(draw) for _ in range(count)]


def foreground(image: Tensor) -> Tensor:
    """Pixels that are clearly coloured, found without the renderer's own masks."""
    return (image.amax(0).int() - image.amin(0).int()) > 60


def nearest_color(pixel: Tensor) -> str:
    distances = {name: (pixel - torch.tensor(PALETTE[name])).norm().item() for name in COLORS}
    return min(distances, key=distances.__getitem__)


def colored(image: Tensor, color: str) -> Tensor:
    """Coordinates (M, 2) as (y, x) of the clearly coloured pixels nearest to one colour."""
    found = [
        point
        for point in foreground(image).nonzero()
        if nearest_color(image[:, point[0], point[1]] / 255) == color
    ]
    return torch.stack(found).float()


def test_equal_generators_give_equal_pictures_and_others_do_not() -> None:
    drawn = scenes(16)
    first = render_batch(drawn, generator(1))
    assert torch.equal(first, render_batch(drawn, generator(1)))
    assert not torch.equal(first, render_batch(drawn, generator(2)))


def test_one_picture_is_a_batch_of_one() -> None:
    scene = scenes(1)[0]
    image = render(scene, generator(3))
    assert image.shape == (3, IMAGE_SIZE, IMAGE_SIZE)
    assert image.dtype == torch.uint8
    assert torch.equal(image, render_batch([scene], generator(3))[0])


@pytest.mark.parametrize("color", COLORS)
@pytest.mark.parametrize("shape", SHAPES)
def test_an_object_has_its_color_from_the_palette(color: str, shape: str) -> None:
    scene = Scene((Thing("large", color, shape),))
    image = render(scene, generator(0)) / 255
    darkest = image[:, image.amax(0) == image.amax()].mean(1)
    error = (darkest - torch.tensor(PALETTE[color])).abs().max()
    assert error <= COLOR_JITTER + 1 / 255


def test_backgrounds_are_neutral_and_within_their_range() -> None:
    images = render_batch(scenes(64), generator(0))
    for image in images:
        grey = image[:, image.amax(0).int() - image.amin(0).int() <= 1] / 255
        assert grey.min() >= BACKGROUND_RANGE[0] - 1 / 255
        assert grey.max() <= BACKGROUND_RANGE[1] + 1 / 255


@pytest.mark.parametrize("shape", SHAPES)
def test_sizes_are_told_apart_by_area(shape: str) -> None:
    areas = []
    for size in SIZES:
        images = render_batch([Scene((Thing(size, "red", shape),))] * 50, generator(0))
        areas.append([foreground(image).sum().item() for image in images])
    small, medium, large = areas
    assert max(small) < min(medium)
    assert max(medium) < min(large)


@pytest.mark.parametrize("relation", RELATIONS)
@pytest.mark.parametrize("sizes", [("small", "medium"), ("large", "large")])
def test_things_stand_in_their_relation_and_apart(relation: str, sizes: tuple[str, str]) -> None:
    things = (Thing(sizes[0], "red", "circle"), Thing(sizes[1], "blue", "square"))
    for image in render_batch([Scene(things, relation)] * 30, generator(0)):
        red, blue = colored(image, "red"), colored(image, "blue")
        axis = 0 if relation in ("above", "below") else 1
        before, after = (red, blue) if relation in ("above", "left of") else (blue, red)
        assert before[:, axis].max() < after[:, axis].min()
        offset = after.mean(0) - before.mean(0)
        assert offset[axis] > offset[1 - axis].abs()


def test_two_equal_things_are_two_separate_regions() -> None:
    scene = Scene((Thing("medium", "green", "square"),) * 2)
    for image in render_batch([scene] * 30, generator(0)):
        mask = foreground(image)
        columns, rows = mask.any(0).int(), mask.any(1).int()
        runs = [int((line.diff() == 1).sum() + line[0]) for line in (columns, rows)]
        assert max(runs) == 2
