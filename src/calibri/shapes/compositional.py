"""A programmatic compositional score for pictures of the shapes world.

In the spirit of GenEval and T2I-CompBench: find the objects that the caption names and score
their counts, colours, shapes, sizes and relation. Unlike theirs the score is continuous, and it is
strict about realism: a score that looks at objects alone is raised by over-saturated colours and
black backgrounds, which make worse pictures.

    score = (geometric mean over objects of match x shape margin)
            x relation x unexplained foreground x background x object colour
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from calibri.shapes.render import (
    BACKGROUND_RANGE,
    COLOR_JITTER,
    IMAGE_SIZE,
    PALETTE,
    RADII,
    pixel_grid,
    shape_distance,
)
from calibri.shapes.scenes import COLORS, RELATIONS, SHAPES, SIZES, parse_caption

_T = TypeVar("_T")

_PHASES = (0.0, 0.5)  # sub-pixel offsets of the templates, along the diagonal
_TEMPLATE_RADII = (2.35, 2.65, 3.0, 3.5, 3.8, 4.3, 4.9, 5.2)
_KERNEL = 13
_NO_RELATION = len(RELATIONS)

# Widths of the soft decisions; the unit of each is in its name.
_RESIDUAL_WIDTH_RGB = 0.15
_SIZE_WIDTH_PX = 0.4
_MARGIN_WIDTH_IOU = 0.05
_RELATION_WIDTH_PX = 1.5
_UNEXPLAINED_WIDTH_PX = 12.0
_BACKGROUND_WIDTH_RGB = 0.03
_OBJECT_COLOR_WIDTH_RGB = 0.12


def _constant(make: Callable[[], _T]) -> Callable[[], _T]:
    """Make a constant once, fit for gradients even if the first call is under inference mode."""
    return cache(torch.inference_mode(False)(make))


class _Slots(NamedTuple):
    """Captions as indices; the second slot repeats the first where there is one thing."""

    colors: Tensor  # (N, 2)
    shapes: Tensor  # (N, 2)
    sizes: Tensor  # (N, 2)
    relations: Tensor  # (N,), 4 for none
    pairs: Tensor  # (N,), whether there are two things
    equals: Tensor  # (N,), whether the two things are the same


@dataclass(frozen=True)
class _Matches:
    """The best placed template of each row, and how well it fits."""

    fit: Tensor  # overlap times size, (N,)
    margin: Tensor  # how clearly the shape is this one rather than another, (N,)
    distance: Tensor  # signed distance to the outline of the template, (N, 24, 24)


@lru_cache(maxsize=65536)
def _codes(text: str) -> tuple[int, ...]:
    scene = parse_caption(text)
    things = (scene.things[0], scene.things[-1])
    return (
        *(COLORS.index(thing.color) for thing in things),
        *(SHAPES.index(thing.shape) for thing in things),
        *(SIZES.index(thing.size) for thing in things),
        RELATIONS.index(scene.relation) if scene.relation else _NO_RELATION,
        len(scene.things) == 2,
        scene.is_pair_of_equals,
    )


def _encode(prompts: Sequence[str]) -> _Slots:
    codes = torch.tensor([_codes(text) for text in prompts])
    return _Slots(
        codes[:, 0:2],
        codes[:, 2:4],
        codes[:, 4:6],
        codes[:, 6],
        codes[:, 7].bool(),
        codes[:, 8].bool(),
    )


@_constant
def _templates() -> tuple[Tensor, Tensor]:
    """Templates (S*R*P, 1, 13, 13) and their box windows (R, 1, 13, 13)."""
    offset = torch.arange(_KERNEL) - _KERNEL // 2
    y, x = torch.meshgrid(offset.float(), offset.float(), indexing="ij")
    radius = torch.tensor(_TEMPLATE_RADII).view(1, -1, 1, 1, 1)
    phase = torch.tensor(_PHASES).view(1, 1, -1, 1, 1)
    shape = torch.arange(len(SHAPES)).view(-1, 1, 1, 1, 1)
    covers = (0.5 - shape_distance(x - phase, y - phase, radius, shape)).clamp(0, 1)
    windows = (torch.maximum(x.abs(), y.abs()) <= radius[0, :, 0] + 1).float()
    return covers.flatten(0, 2).unsqueeze(1), windows.unsqueeze(1)


@_constant
def _size_weights() -> Tensor:
    """How well each template radius agrees with each size word: (sizes, radii)."""
    spans = torch.tensor([RADII[size] for size in SIZES])
    radius = torch.tensor(_TEMPLATE_RADII)
    outside = (spans[:, :1] - radius).clamp(min=0) + (radius - spans[:, 1:]).clamp(min=0)
    return torch.exp(-outside / _SIZE_WIDTH_PX)


@_constant
def _grid() -> tuple[Tensor, Tensor]:
    return pixel_grid()


def _palette() -> Tensor:
    return torch.tensor([PALETTE[color] for color in COLORS])


def _color_mask(images: Tensor, colors: Tensor) -> Tensor:
    """How much of each pixel an object of this colour covers: (N, 24, 24) in [0, 1].

    A pixel on an edge lies between the background and the colour: its place on that line is the
    cover, its distance from the line tells other colours apart.
    """
    ground = sum(BACKGROUND_RANGE) / 2
    axis = (_palette()[colors] - ground)[..., None, None]
    offset = images - ground
    place = (offset * axis).sum(1, keepdim=True) / axis.square().sum(1, keepdim=True)
    residual = (offset - place * axis).square().sum(1)
    return place[:, 0].clamp(0, 1) * torch.exp(-residual / _RESIDUAL_WIDTH_RGB**2)


def _overlaps(mask: Tensor) -> Tensor:
    """Tanimoto overlap of a mask with every template everywhere: (N, S, R, P, 24, 24)."""
    covers, windows = _templates()
    shared = functional.conv2d(mask.unsqueeze(1), covers, padding=_KERNEL // 2)
    layout = (len(SHAPES), len(_TEMPLATE_RADII), len(_PHASES))
    shared = shared.view(len(mask), *layout, *mask.shape[1:])
    energy = functional.conv2d(mask.square().unsqueeze(1), windows, padding=_KERNEL // 2)
    own = covers.square().sum((1, 2, 3)).view(1, *layout, 1, 1)
    return shared / (own + energy[:, None, :, None] - shared)


def _match(mask: Tensor, shapes: Tensor, sizes: Tensor) -> _Matches:
    """Place the named shape where it fits best, and ask whether another shape fits better."""
    overlaps = _overlaps(mask)
    rows = torch.arange(len(mask))
    weights = _size_weights()[sizes][:, :, None, None, None]
    fit, index = (overlaps[rows, shapes] * weights).flatten(1).max(1)
    by_shape = overlaps.flatten(2).amax(2)
    own = by_shape.gather(1, shapes[:, None])[:, 0]
    other = by_shape.scatter(1, shapes[:, None], 0.0).amax(1)
    margin = torch.sigmoid((own - other) / _MARGIN_WIDTH_IOU)
    column, index = index % IMAGE_SIZE, index // IMAGE_SIZE
    row, index = index % IMAGE_SIZE, index // IMAGE_SIZE
    phase = torch.tensor(_PHASES)[index % len(_PHASES)] + 0.5
    radius = torch.tensor(_TEMPLATE_RADII)[index // len(_PHASES)]
    x, y = _grid()
    distance = shape_distance(
        x - (column + phase)[:, None, None],
        y - (row + phase)[:, None, None],
        radius[:, None, None],
        shapes[:, None, None],
    )
    return _Matches(fit, margin, distance)


def _centroid(mask: Tensor, distance: Tensor) -> Tensor:
    """Centre of mass (x, y) of a mask around its template: (N, 2)."""
    weight = mask * (1.5 - distance).clamp(0, 1) + 1e-6
    x, y = _grid()
    mass = weight.sum((1, 2))
    return torch.stack([(weight * x).sum((1, 2)), (weight * y).sum((1, 2))], 1) / mass[:, None]


def _relation(relations: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """How clearly the first centre stands to the second as the caption says; 1 without one."""
    dx, dy = (second - first).unbind(1)
    none = torch.full_like(dx, torch.inf)
    along = torch.stack([dy, -dy, dx, -dx, none], 1).gather(1, relations[:, None])[:, 0]
    across = torch.stack([dx, dx, dy, dy, dx], 1).gather(1, relations[:, None])[:, 0]
    return torch.sigmoid((along - 0.5 * across.abs()) / _RELATION_WIDTH_PX)


def _foreground(images: Tensor) -> Tensor:
    """How much each pixel is anything but background: (N, 24, 24) in [0, 1]."""
    high, low = images.amax(1), images.amin(1)
    colored = (high - low - 0.04) / 0.4
    bright = (high - BACKGROUND_RANGE[1] - 0.04) / 0.4
    return torch.maximum(colored, bright).clamp(0, 1)


def _background_error(images: Tensor, weight: Tensor) -> Tensor:
    """Weighted deviation of the background from a legal one, in RGB units: (N,).

    A legal background is neutral, within its range of greys, and linear across the picture.
    """
    low, high = BACKGROUND_RANGE
    mass = weight.sum((1, 2)).clamp(min=1.0)
    grey = images.mean(1)
    x, y = _grid()
    basis = torch.stack([torch.ones_like(x), x / IMAGE_SIZE - 0.5, y / IMAGE_SIZE - 0.5]).flatten(1)
    weighted = basis * weight.flatten(1)[:, None]
    # A little ridge keeps the fit defined when objects cover nearly everything.
    normal = weighted @ basis.T + 1e-3 * torch.eye(3)
    plane: Tensor = torch.linalg.solve(normal, (weighted @ grey.flatten(1)[..., None])[..., 0])
    fitted = (plane[:, None] @ basis).view_as(grey)
    rough = ((images - fitted[:, None]).square().mean(1) * weight).sum((1, 2)) / mass
    illegal = (fitted - fitted.clamp(low, high)).abs()
    return (rough + 1e-8).sqrt() + (illegal * weight).sum((1, 2)) / mass


def _object_color_error(images: Tensor, colors: Tensor, distance: Tensor) -> Tensor:
    """Mean deviation inside an object from its colour beyond the legal jitter: (N,)."""
    inside = (-distance - 0.5).clamp(0, 1)
    error = (images - _palette()[colors][..., None, None]).abs() - COLOR_JITTER
    error = error.clamp(min=0).amax(1)
    return (error * inside).sum((1, 2)) / (inside.sum((1, 2)) + 1e-6)


def compositional_score(images: Tensor, captions: Sequence[str]) -> Tensor:
    """Score pictures against what their captions say; see above.

    Args:
        images: float in [0, 1], (N, 3, 24, 24); the score has a gradient with respect to them.
        captions: N texts.

    Returns:
        float (N,) in [0, 1].

    Raises:
        PromptError: a text is not a caption.
    """
    slots = _encode(captions)
    first_mask = _color_mask(images, slots.colors[:, 0])
    first = _match(first_mask, slots.shapes[:, 0], slots.sizes[:, 0])
    # The first of two equal things is removed before the second is looked for.
    removed = (2.0 - first.distance).clamp(0, 1) * slots.equals[:, None, None]
    second_mask = _color_mask(images, slots.colors[:, 1]) * (1 - removed)
    second = _match(second_mask, slots.shapes[:, 1], slots.sizes[:, 1])
    fits = first.fit * first.margin
    fits = torch.where(slots.pairs, (fits * second.fit * second.margin + 1e-12).sqrt(), fits)
    relation = _relation(
        slots.relations,
        _centroid(first_mask, first.distance),
        _centroid(second_mask, second.distance),
    )
    nearest = torch.where(
        slots.pairs[:, None, None], torch.minimum(first.distance, second.distance), first.distance
    )
    elsewhere = (nearest - 0.5).clamp(0, 1)
    foreground = _foreground(images)
    unexplained = (foreground * elsewhere).sum((1, 2))
    background = _background_error(images, elsewhere * (1 - foreground))
    color = _object_color_error(images, slots.colors[:, 0], first.distance)
    color_2 = _object_color_error(images, slots.colors[:, 1], second.distance)
    color = torch.where(slots.pairs, (color + color_2) / 2, color)
    penalty = (
        unexplained / _UNEXPLAINED_WIDTH_PX
        + background / _BACKGROUND_WIDTH_RGB
        + color / _OBJECT_COLOR_WIDTH_RGB
    )
    return fits * relation * torch.exp(-penalty)
