"""Scenes to pictures: signed distance fields with anti-aliased edges on a dark grey gradient.

Everything is batched over scenes; one call draws layouts, colours and backgrounds from one
explicit generator, so equal generators give equal pictures.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from calibri.shapes.scenes import COLORS, RELATIONS, SHAPES, SIZES, Scene, parse_caption

IMAGE_SIZE = 24
"""Height and width of a picture, in pixels."""

PALETTE: dict[str, tuple[float, float, float]] = {
    "red": (0.86, 0.16, 0.16),
    "green": (0.16, 0.70, 0.27),
    "blue": (0.20, 0.28, 0.88),
    "yellow": (0.88, 0.75, 0.17),
    "magenta": (0.80, 0.22, 0.80),
    "cyan": (0.17, 0.73, 0.86),
}
"""Mean RGB of each colour, in [0, 1]; no channel is ever saturated."""

COLOR_JITTER = 0.04
"""Largest deviation of an object's channel from the palette."""

RADII: dict[str, tuple[float, float]] = {
    "small": (2.3, 2.7),
    "medium": (3.4, 3.9),
    "large": (4.8, 5.3),
}
"""Smallest and largest radius of each size, in pixels."""

BACKGROUND_RANGE = (0.08, 0.24)
"""Darkest and brightest grey of a background; it is neutral and changes linearly."""

GAP = 1.0
"""Least distance between two things along one axis, in pixels."""

_SLOPE = 0.03  # half the change of the background from edge to edge
_EDGE = 0.5  # least distance of a thing from the picture's edge, in pixels
_TRIES = 32  # layouts drawn at once for each scene; the first legal one is kept


def _uniform(
    shape: tuple[int, ...], low: float | Tensor, high: float | Tensor, generator: torch.Generator
) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator)


def shape_distance(x: Tensor, y: Tensor, radius: Tensor, shape: Tensor) -> Tensor:
    """Signed distance to the outline of shapes at the origin, negative inside, in pixels.

    Args:
        x: offset to the right, broadcastable with the others.
        y: offset downwards.
        radius: half the extent of the shape.
        shape: indices into ``SHAPES``.
    """
    circle = torch.hypot(x, y) - radius
    square = torch.maximum(x.abs(), y.abs()) - 0.9 * radius
    # Slanted sides from the apex (0, -r) to the base corners (+-r, 0.9 r).
    norm = 1.9 / (1.9**2 + 1) ** 0.5
    slant = (x.abs() - (y + radius) / 1.9) * norm
    triangle = torch.maximum(slant, y - 0.9 * radius)
    arm = 0.34 * radius
    bar = torch.maximum(x.abs() - radius, y.abs() - arm)
    post = torch.maximum(x.abs() - arm, y.abs() - radius)
    cross = torch.minimum(bar, post)
    fields = (circle, square, triangle, cross)
    result = circle
    for index, field in enumerate(fields[1:], start=1):
        result = torch.where(shape == index, field, result)
    return result


def pixel_grid() -> tuple[Tensor, Tensor]:
    """Pixel centres (x, y), each (24, 24)."""
    axis = torch.arange(IMAGE_SIZE) + 0.5
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return x, y


def _legal(centers: Tensor, radii: Tensor, relations: Tensor) -> Tensor:
    """Which layouts (N, T, 2, 2) keep the things apart and in their relation: (N, T)."""
    dx, dy = (centers[:, :, 1] - centers[:, :, 0]).unbind(-1)
    apart = radii.sum(1)[:, None] + GAP
    # The relation of the first thing to the second as a distance that must exceed the gap.
    along = torch.stack([dy, -dy, dx, -dx, torch.maximum(dx.abs(), dy.abs())])
    across = torch.stack([dx, dx, dy, dy, torch.zeros_like(dx)]).abs()
    index = relations.view(1, -1, 1).expand(1, *dx.shape)
    along, across = along.gather(0, index)[0], across.gather(0, index)[0]
    return (along >= apart) & (across <= 0.9 * along)


def _layouts(radii: Tensor, relations: Tensor, generator: torch.Generator) -> Tensor:
    """Centres (N, 2, 2) by rejection; a relation index of 4 means none."""
    centers = torch.empty(len(radii), 2, 2)
    pending = torch.arange(len(radii))
    while len(pending):
        margin = radii[pending][:, None, :, None] + _EDGE
        tries = _uniform((len(pending), _TRIES, 2, 2), margin, IMAGE_SIZE - margin, generator)
        legal = _legal(tries, radii[pending], relations[pending])
        found, first = legal.max(1)
        centers[pending[found]] = tries[found, first[found]]
        pending = pending[~found]
    return centers


def _backgrounds(count: int, generator: torch.Generator) -> Tensor:
    low, high = BACKGROUND_RANGE
    level = _uniform((count, 1, 1), low + _SLOPE, high - _SLOPE, generator)
    angle = _uniform((count, 1, 1), 0.0, 2 * torch.pi, generator)
    slope = _uniform((count, 1, 1), 0.0, _SLOPE, generator)
    x, y = (axis / IMAGE_SIZE * 2 - 1 for axis in pixel_grid())
    ramp = (torch.cos(angle) * x + torch.sin(angle) * y) / 2**0.5
    return (level + slope * ramp).unsqueeze(1).expand(-1, 3, -1, -1)


def render_batch(scenes: Sequence[Scene], generator: torch.Generator) -> Tensor:
    """Draw one picture per scene: uint8 (N, 3, 24, 24)."""
    # A single thing is drawn twice in the same place, which keeps the batch rectangular.
    pairs = [(scene.things[0], scene.things[-1]) for scene in scenes]
    single = torch.tensor([len(scene.things) == 1 for scene in scenes])
    codes = torch.tensor(
        [
            [(SIZES.index(t.size), COLORS.index(t.color), SHAPES.index(t.shape)) for t in pair]
            for pair in pairs
        ]
    )
    relations = torch.tensor([RELATIONS.index(s.relation) if s.relation else 4 for s in scenes])
    spans = torch.tensor([RADII[size] for size in SIZES])[codes[..., 0]]
    radii = _uniform(spans.shape[:2], spans[..., 0], spans[..., 1], generator)
    centers = _layouts(radii, relations, generator)
    centers[single, 1], radii[single, 1] = centers[single, 0], radii[single, 0]
    colors = torch.tensor([PALETTE[color] for color in COLORS])[codes[..., 1]]
    colors = colors + _uniform(colors.shape, -COLOR_JITTER, COLOR_JITTER, generator)
    colors[single, 1] = colors[single, 0]
    images = _backgrounds(len(scenes), generator)
    x, y = pixel_grid()
    for k in range(2):
        place = centers[:, k, :, None, None]
        field = shape_distance(
            x - place[:, 0], y - place[:, 1], radii[:, k, None, None], codes[:, k, 2, None, None]
        )
        cover = (0.5 - field).clamp(0, 1).unsqueeze(1)
        images = torch.lerp(images, colors[:, k, :, None, None], cover)
    return (images * 255).round().to(torch.uint8)


def render(scene: Scene, generator: torch.Generator) -> Tensor:
    """Draw one picture of a scene: uint8 (3, 24, 24)."""
    return render_batch([scene], generator)[0]


def draw_captions(captions: Sequence[str], seed: int) -> Tensor:
    """Draw a picture of each caption: uint8 (N, 3, 24, 24).

    Args:
        captions: N texts.
        seed: of what captions leave open, such as places and backgrounds.

    Raises:
        PromptError: a text is not a caption.
    """
    scenes = [parse_caption(text) for text in captions]
    return render_batch(scenes, torch.Generator().manual_seed(seed))
