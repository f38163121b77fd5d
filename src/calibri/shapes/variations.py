"""Ways to be wrong: scenes that differ from a caption in one respect, and damaged pictures.

Rewards are validated, and the judge is trained, on these.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from calibri.shapes.render import BACKGROUND_RANGE
from calibri.shapes.scenes import COLORS, RELATIONS, SHAPES, SIZES, Scene, Thing, draw_below

NearMiss = Callable[[Scene, torch.Generator], Scene | None]
"""A scene that contradicts the caption of the given one; None where there is no such scene."""

Damage = Callable[[Tensor, torch.Generator], Tensor]
"""Pictures to damaged pictures: uint8 (N, 3, 24, 24) both."""

_PATCH = 4  # pixels; the patch of the shipped transformer


def _with_thing(scene: Scene, index: int, thing: Thing) -> Scene:
    """The scene with one thing replaced; equal things stay equal."""
    if scene.is_pair_of_equals:
        return Scene((thing, thing))
    things = (*scene.things[:index], thing, *scene.things[index + 1 :])
    return replace(scene, things=things)


def wrong_color(scene: Scene, generator: torch.Generator) -> Scene:
    """One thing, or both of two equal ones, has a colour that the scene does not name."""
    index = draw_below(len(scene.things), generator)
    taken = {thing.color for thing in scene.things}
    others = [color for color in COLORS if color not in taken]
    color = others[draw_below(len(others), generator)]
    return _with_thing(scene, index, replace(scene.things[index], color=color))


def wrong_shape(scene: Scene, generator: torch.Generator) -> Scene:
    """One thing, or both of two equal ones, has another shape."""
    index = draw_below(len(scene.things), generator)
    others = [shape for shape in SHAPES if shape != scene.things[index].shape]
    shape = others[draw_below(len(others), generator)]
    return _with_thing(scene, index, replace(scene.things[index], shape=shape))


def wrong_size(scene: Scene, generator: torch.Generator) -> Scene:
    """One thing, or both of two equal ones, has another size."""
    index = draw_below(len(scene.things), generator)
    others = [size for size in SIZES if size != scene.things[index].size]
    size = others[draw_below(len(others), generator)]
    return _with_thing(scene, index, replace(scene.things[index], size=size))


def wrong_count(scene: Scene, generator: torch.Generator) -> Scene:
    """One thing is doubled, or one of two is missing."""
    if len(scene.things) == 1:
        return Scene(scene.things * 2)
    return Scene((scene.things[draw_below(2, generator)],))


def wrong_relation(scene: Scene, generator: torch.Generator) -> Scene | None:
    """Another relation; the opposite one in half of the cases."""
    if scene.relation is None:
        return None
    here = RELATIONS.index(scene.relation)
    opposite = here ^ 1  # above and below, left and right are neighbours in RELATIONS
    sideways = [k for k in range(len(RELATIONS)) if k // 2 != here // 2]
    other = opposite if draw_below(2, generator) else sideways[draw_below(2, generator)]
    return replace(scene, relation=RELATIONS[other])


def swapped(scene: Scene, generator: torch.Generator) -> Scene | None:
    """Two things exchange their colours, shapes or sizes (the attribute binding is wrong)."""
    if len(scene.things) == 1 or scene.is_pair_of_equals:
        return None
    first, second = scene.things
    exchanges: list[tuple[Thing, Thing]] = []
    if (first.shape, first.size) != (second.shape, second.size):
        exchanges.append((replace(first, color=second.color), replace(second, color=first.color)))
    if first.shape != second.shape:
        exchanges.append((replace(first, shape=second.shape), replace(second, shape=first.shape)))
    if first.size != second.size:
        exchanges.append((replace(first, size=second.size), replace(second, size=first.size)))
    if not exchanges:
        return None
    return replace(scene, things=exchanges[draw_below(len(exchanges), generator)])


NEAR_MISSES: dict[str, NearMiss] = {
    "wrong color": wrong_color,
    "wrong shape": wrong_shape,
    "wrong size": wrong_size,
    "wrong count": wrong_count,
    "wrong relation": wrong_relation,
    "swapped": swapped,
}


def _strength(images: Tensor, low: float, high: float, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand((len(images), 1, 1, 1), generator=generator)


def _to_uint8(images: Tensor) -> Tensor:
    return images.round().clamp(0, 255).to(torch.uint8)


def add_noise(images: Tensor, generator: torch.Generator) -> Tensor:
    """Independent noise with a deviation between 0.04 and 0.2 of the range."""
    noise = torch.randn(images.shape, generator=generator)
    return _to_uint8(images + 255 * _strength(images, 0.04, 0.2, generator) * noise)


def blur(images: Tensor, generator: torch.Generator) -> Tensor:
    """Gaussian blur with a deviation between 0.8 and 1.6 pixels."""
    width = _strength(images, 0.8, 1.6, generator).view(-1, 1)
    offset = torch.arange(-4, 5)
    kernel = torch.exp(-0.5 * (offset / width).square())
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(3, 0)
    planes = functional.pad(images.float(), (4, 4, 4, 4), mode="replicate").flatten(0, 1)[None]
    planes = functional.conv2d(planes, kernel[:, None, None, :], groups=len(kernel))
    planes = functional.conv2d(planes, kernel[:, None, :, None], groups=len(kernel))
    return _to_uint8(planes.view(images.shape))


def _other(images: Tensor) -> Tensor:
    """Each picture's neighbour in the batch; a lone picture is shifted instead."""
    return images.roll(1, 0) if len(images) > 1 else images.roll((8, 8), (2, 3))


def ghost(images: Tensor, generator: torch.Generator) -> Tensor:
    """Blend with another picture: half-transparent things."""
    share = _strength(images, 0.3, 0.6, generator)
    return _to_uint8(torch.lerp(images.float(), _other(images).float(), share))


def mix_patches(images: Tensor, generator: torch.Generator) -> Tensor:
    """Replace each 4 x 4 patch by another picture's with a chance between 15 and 40 %."""
    patches = images.shape[-1] // _PATCH
    draw = torch.rand((len(images), 1, patches, patches), generator=generator)
    chosen = draw < _strength(images, 0.15, 0.4, generator)
    chosen = chosen.repeat_interleave(_PATCH, 2).repeat_interleave(_PATCH, 3)
    return torch.where(chosen, _other(images), images)


def saturate(images: Tensor, generator: torch.Generator) -> Tensor:
    """Stretch contrast around a dark grey, as too large an output weight does."""
    gain = _strength(images, 1.3, 2.0, generator)
    return _to_uint8(64 + gain * (images - 64.0))


def blacken_background(images: Tensor, generator: torch.Generator) -> Tensor:
    """Darken the grey of the background to nearly black; objects keep their colours."""
    values = images.float()
    chroma = values.amax(1, keepdim=True) - values.amin(1, keepdim=True)
    keep = (chroma / (255 * sum(BACKGROUND_RANGE))).clamp(0, 1)
    dark = _strength(images, 0.0, 0.3, generator)
    return _to_uint8(values * torch.maximum(keep, dark))


DAMAGES: dict[str, Damage] = {
    "noise": add_noise,
    "blur": blur,
    "ghost": ghost,
    "mixed patches": mix_patches,
    "saturated": saturate,
    "black background": blacken_background,
}
