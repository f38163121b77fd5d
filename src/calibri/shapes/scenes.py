"""Scenes of one or two coloured shapes, and the closed language that describes them.

A scene is what a caption says and no more: where exactly things stand is drawn by the renderer.
Captions and scenes are in one-to-one correspondence.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args
from zlib import crc32

import torch

from calibri.errors import PromptError
from calibri.seeds import derive_seed

Color = Literal["red", "green", "blue", "yellow", "magenta", "cyan"]
Shape = Literal["circle", "square", "triangle", "cross"]
Size = Literal["small", "medium", "large"]
Relation = Literal["above", "below", "left of", "right of"]
Split = Literal["train", "held_out"]

COLORS: tuple[Color, ...] = get_args(Color)
SHAPES: tuple[Shape, ...] = get_args(Shape)
SIZES: tuple[Size, ...] = get_args(Size)
RELATIONS: tuple[Relation, ...] = get_args(Relation)

_PLURALS = {shape: "crosses" if shape == "cross" else f"{shape}s" for shape in SHAPES}
_SINGULARS = {plural: shape for shape, plural in _PLURALS.items()}
VOCABULARY: tuple[str, ...] = (
    *("a", "and", "two", "above", "below", "left", "right", "of", "small", "large"),
    *COLORS,
    *SHAPES,
    *_PLURALS.values(),
)
"""Every word that a caption can contain."""

# Shares of the four kinds of caption: one thing, a relation, "and", "two".
_KIND_SHARES = (0.15, 0.50, 0.20, 0.15)
_HELD_OUT_MODULUS = 5  # one caption in five is never trained on


@dataclass(frozen=True)
class Thing:
    """One object: its size, colour and shape."""

    size: Size
    color: Color
    shape: Shape

    def phrase(self, plural: bool = False) -> str:
        """The noun phrase without an article; a medium size has no word."""
        size = "" if self.size == "medium" else f"{self.size} "
        return f"{size}{self.color} {_PLURALS[self.shape] if plural else self.shape}"


@dataclass(frozen=True)
class Scene:
    """What a caption says: one thing, or two with an optional relation of first to second.

    Two equal things are a count ("two red circles") and have no relation; two things that differ
    have different colours, so that a part of a picture never belongs to both.

    Raises:
        PromptError: no such scene exists in this world.
    """

    things: tuple[Thing, ...]
    relation: Relation | None = None

    def __post_init__(self) -> None:
        if len(self.things) not in (1, 2):
            raise PromptError(f"A scene has one or two things, not {len(self.things)}.")
        if self.relation is not None and (len(self.things) == 1 or self.is_pair_of_equals):
            raise PromptError(f"'{self.relation}' needs two things of different colours.")
        if len(self.things) == 2 and not self.is_pair_of_equals:
            first, second = self.things
            if first.color == second.color:
                raise PromptError(
                    f"Two different things of one colour ({first.color}) are not part of this "
                    "world. Give them different colours, or write 'two ...' for equal things."
                )

    @property
    def is_pair_of_equals(self) -> bool:
        """Whether the caption counts: two things that are the same."""
        return len(self.things) == 2 and self.things[0] == self.things[1]


def caption(scene: Scene) -> str:
    """The one caption of a scene, for example ``"a small red circle above a blue square"``."""
    first = scene.things[0]
    if scene.is_pair_of_equals:
        return f"two {first.phrase(plural=True)}"
    if len(scene.things) == 1:
        return f"a {first.phrase()}"
    return f"a {first.phrase()} {scene.relation or 'and'} a {scene.things[1].phrase()}"


def _either(words: tuple[str, ...]) -> str:
    return "|".join(words)


_THING = rf"(?:(small|large) )?({_either(COLORS)}) ({_either(SHAPES)})"
_SINGLE_OR_PAIR = re.compile(rf"a {_THING}(?: (and|{_either(RELATIONS)}) a {_THING})?")
_TWO = re.compile(rf"two (?:(small|large) )?({_either(COLORS)}) ({_either((*_SINGULARS,))})")


def canonical(text: str) -> str:
    """The text with single spaces and in lower case: what two equal captions have in common."""
    return " ".join(text.lower().split())


def _thing(size: str | None, color: str, shape: str) -> Thing:
    return Thing(size or "medium", color, shape)  # type: ignore[arg-type]  # words of the grammar


@lru_cache(maxsize=65536)
def parse_caption(text: str) -> Scene:
    """Read a caption: the inverse of ``caption``, whatever its letter case and spacing.

    Raises:
        PromptError: the text is not a caption of this world.
    """
    line = canonical(text)
    if match := _TWO.fullmatch(line):
        size, color, plural = match.groups()
        thing = _thing(size, color, _SINGULARS[plural])
        return Scene((thing, thing))
    match = _SINGLE_OR_PAIR.fullmatch(line)
    if match is None:
        raise PromptError(
            f"'{text}' is not a caption of the shapes world. Write one like 'a small red circle', "
            "'a red circle above a blue square', 'a red circle and a blue square' or 'two large "
            f"green triangles'. Colours: {', '.join(COLORS)}. Shapes: {', '.join(SHAPES)}."
        )
    size, color, shape, link, *second = match.groups()
    first = _thing(size, color, shape)
    if link is None:
        return Scene((first,))
    relation = next((name for name in RELATIONS if name == link), None)
    return Scene((first, _thing(*second)), relation)


def draw_below(count: int, generator: torch.Generator) -> int:
    """Draw an integer in [0, count)."""
    return int(torch.randint(count, (1,), generator=generator))


def _sample_thing(generator: torch.Generator, colors: tuple[Color, ...]) -> Thing:
    return Thing(
        SIZES[draw_below(len(SIZES), generator)],
        colors[draw_below(len(colors), generator)],
        SHAPES[draw_below(len(SHAPES), generator)],
    )


def sample_scene(generator: torch.Generator) -> Scene:
    """Draw a scene of either split.

    15 % single things, 50 % relations, 20 % "and", 15 % pairs of equals; sizes, colours, shapes
    and relations are uniform.
    """
    shares = torch.tensor(_KIND_SHARES)
    kind = int(torch.multinomial(shares, 1, generator=generator))
    first = _sample_thing(generator, COLORS)
    if kind == 0:
        return Scene((first,))
    if kind == 3:
        return Scene((first, first))
    others = tuple(color for color in COLORS if color != first.color)
    second = _sample_thing(generator, others)
    relation = RELATIONS[draw_below(len(RELATIONS), generator)] if kind == 1 else None
    return Scene((first, second), relation)


def held_out(text: str) -> bool:
    """Whether a caption is never trained on: about a fifth of all captions, by their text."""
    return crc32(canonical(text).encode()) % _HELD_OUT_MODULUS == 0


@lru_cache(maxsize=1)
def all_captions() -> tuple[str, ...]:
    """Every caption of this world, once."""
    things = [Thing(size, color, shape) for size in SIZES for color in COLORS for shape in SHAPES]
    scenes = [Scene((thing,) * count) for thing in things for count in (1, 2)]
    scenes += [
        Scene((first, second), relation)
        for first in things
        for second in things
        if first.color != second.color
        for relation in (None, *RELATIONS)
    ]
    return tuple(caption(scene) for scene in scenes)


def sample_prompts(n: int, seed: int, split: Split) -> list[str]:
    """Draw ``n`` distinct captions of one split.

    The same arguments give the same captions; a longer list starts with the shorter one.

    Raises:
        PromptError: the split is unknown, or has fewer captions than are asked for.
    """
    if split not in get_args(Split):
        raise PromptError(f"Unknown split '{split}'. Use one of: {', '.join(get_args(Split))}.")
    wanted = split == "held_out"
    available = sum(held_out(text) == wanted for text in all_captions())
    if n > available:
        raise PromptError(f"The '{split}' split has {available} captions; {n} were asked for.")
    generator = torch.Generator().manual_seed(derive_seed(seed, "shapes prompts", split))
    found: dict[str, None] = {}
    while len(found) < n:
        text = caption(sample_scene(generator))
        if held_out(text) == wanted:
            found[text] = None
    return list(found)
