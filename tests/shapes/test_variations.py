import pytest
import torch

from calibri.shapes.render import render_batch
from calibri.shapes.scenes import Scene, Thing, caption, sample_scene
from calibri.shapes.variations import DAMAGES, NEAR_MISSES


def scenes(count: int) -> list[Scene]:
    draw = torch.Generator().manual_seed(3)
    return [sample_scene(draw) for _ in range(count)]


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_a_near_miss_is_another_scene(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = scenes(400)
    missed = [(scene, NEAR_MISSES[name](scene, generator)) for scene in drawn]
    found = [(scene, other) for scene, other in missed if other is not None]
    assert len(found) > 100
    assert all(caption(scene) != caption(other) for scene, other in found)


@pytest.mark.parametrize(
    ("name", "attribute"),
    [("wrong color", "color"), ("wrong shape", "shape"), ("wrong size", "size")],
)
def test_a_wrong_attribute_leaves_the_others(name: str, attribute: str) -> None:
    generator = torch.Generator().manual_seed(0)
    rest = {"color", "shape", "size"} - {attribute}
    for scene in scenes(200):
        other = NEAR_MISSES[name](scene, generator)
        assert other is not None
        assert other.relation == scene.relation
        for before, after in zip(scene.things, other.things, strict=True):
            assert all(getattr(before, key) == getattr(after, key) for key in rest)


def test_swapping_exchanges_attributes_and_nothing_else() -> None:
    generator = torch.Generator().manual_seed(0)
    for scene in scenes(200):
        other = NEAR_MISSES["swapped"](scene, generator)
        for key in ("color", "shape", "size") if other else ():
            values = sorted(getattr(thing, key) for thing in scene.things)
            assert values == sorted(getattr(thing, key) for thing in other.things)


def test_a_wrong_count_changes_the_number_of_things() -> None:
    generator = torch.Generator().manual_seed(0)
    scene = Scene((Thing("small", "red", "circle"),))
    assert NEAR_MISSES["wrong count"](scene, generator) == Scene(scene.things * 2)
    assert NEAR_MISSES["wrong count"](Scene(scene.things * 2), generator) == scene


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_changes_every_picture_and_repeats_with_its_generator(name: str) -> None:
    images = render_batch(scenes(32), torch.Generator().manual_seed(1))
    kept = images.clone()
    damaged = DAMAGES[name](images, torch.Generator().manual_seed(2))
    assert damaged.dtype == torch.uint8
    assert damaged.shape == images.shape
    assert torch.equal(images, kept)
    assert (damaged != images).flatten(1).any(1).all()
    assert torch.equal(damaged, DAMAGES[name](images, torch.Generator().manual_seed(2)))


def test_blurring_lowers_contrast_and_keeps_the_mean() -> None:
    images = render_batch(scenes(32), torch.Generator().manual_seed(1)).float()
    blurred = DAMAGES["blur"](images.byte(), torch.Generator().manual_seed(2)).float()
    assert (blurred.std((1, 2, 3)) < images.std((1, 2, 3))).all()
    assert torch.allclose(blurred.mean((1, 2, 3)), images.mean((1, 2, 3)), atol=4)
