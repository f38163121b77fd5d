"""Compositional prompts of our own, so that a model can be calibrated with no data set at hand.

Seven categories ask for what text-to-image models find hard: colours and textures and shapes bound
to the right thing, places, counts, actions, and several of these at once. All is plain English
with its articles and plurals. Whether a prompt is for training or held out is a function of its
content, a fifth being held out, so that no seed can move one from one side to the other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from calibri.errors import PromptError
from calibri.prompts.files import wording
from calibri.seeds import derive_seed

Category = Literal["color", "shape", "texture", "spatial", "counting", "action", "complex"]
Split = Literal["train", "held_out"]

CATEGORIES: tuple[Category, ...] = get_args(Category)

_HELD_OUT_SHARE = 5  # one of so many
_TRIES = 200  # per prompt: a category is exhausted when so many draws give nothing new

COLORS = (
    *("red", "orange", "yellow", "green", "turquoise", "blue", "purple", "pink", "brown"),
    *("black", "white", "grey", "golden", "silver"),
)
SHAPES = (
    *("round", "square", "rectangular", "triangular", "oval", "hexagonal", "heart-shaped"),
    *("star-shaped", "conical", "cylindrical"),
)
TEXTURES = (
    *("wooden", "metal", "glass", "stone", "plastic", "leather", "woollen", "ceramic", "rubber"),
    *("paper", "velvet", "marble", "concrete", "wicker"),
)
NUMBERS = ("two", "three", "four", "five", "six", "seven", "eight")

# (singular, plural) of things that may have any colour, shape or material.
OBJECTS = (
    *(("vase", "vases"), ("box", "boxes"), ("bowl", "bowls"), ("cup", "cups")),
    *(("plate", "plates"), ("lamp", "lamps"), ("clock", "clocks"), ("table", "tables")),
    *(("tray", "trays"), ("bench", "benches"), ("mirror", "mirrors"), ("basket", "baskets")),
    *(("button", "buttons"), ("stool", "stools"), ("picture frame", "picture frames")),
    *(("candle holder", "candle holders"), ("tile", "tiles"), ("sign", "signs")),
    *(("toy", "toys"), ("bottle", "bottles")),
)
# Things that may have any colour but come in their own shape and material.
COLORED = (
    *(("car", "cars"), ("bicycle", "bicycles"), ("umbrella", "umbrellas"), ("boat", "boats")),
    *(("backpack", "backpacks"), ("kite", "kites"), ("door", "doors"), ("sofa", "sofas")),
    *(("balloon", "balloons"), ("scarf", "scarves"), ("suitcase", "suitcases")),
    *(("flower", "flowers"), ("bus", "buses"), ("chair", "chairs"), ("hat", "hats")),
    *(("teapot", "teapots"), ("guitar", "guitars"), ("tent", "tents")),
)
ANIMALS = (
    *(("dog", "dogs"), ("cat", "cats"), ("horse", "horses"), ("rabbit", "rabbits")),
    *(("elephant", "elephants"), ("owl", "owls"), ("fox", "foxes"), ("sheep", "sheep")),
    *(("duck", "ducks"), ("monkey", "monkeys"), ("giraffe", "giraffes"), ("bear", "bears")),
)
PEOPLE = (
    *(("woman", "women"), ("man", "men"), ("child", "children"), ("chef", "chefs")),
    *(("musician", "musicians"), ("farmer", "farmers"), ("astronaut", "astronauts")),
    *(("painter", "painters"), ("old lady", "old ladies"), ("firefighter", "firefighters")),
)
RELATIONS = (
    *("on top of", "under", "to the left of", "to the right of", "in front of", "behind"),
    *("next to", "above", "below"),
)
# What one can do to somebody, and alone.
TOGETHER = (
    *("is playing chess with", "is dancing with", "is waving to", "is chasing", "is hugging"),
    *("is taking a photo of", "is feeding", "is talking to", "is drawing a portrait of"),
)
ALONE = (
    *("is reading a newspaper", "is riding a bicycle", "is playing the violin", "is sleeping"),
    *("is jumping over a puddle", "is eating an apple", "is climbing a ladder"),
    *("is painting a fence", "is flying a kite", "is drinking from a cup", "is skating"),
)
PLACES = (
    *("in a kitchen", "on a beach", "in a snowy forest", "in a busy street", "in a library"),
    *("on a mountain meadow", "in an empty room", "in a garden", "at a railway station"),
    *("under a starry sky",),
)

_Rng = np.random.Generator
_Noun = tuple[str, str]


@dataclass(frozen=True)
class CompositionalPrompt:
    """A prompt and what it asks for.

    Attributes:
        text: an English sentence or noun phrase without a full stop.
        category: what is composed.
    """

    text: str
    category: Category


def is_held_out(text: str) -> bool:
    """Tell whether a prompt belongs to the held-out fifth; a function of its text alone."""
    return hashlib.sha256(wording(text).encode()).digest()[0] % _HELD_OUT_SHARE == 0


def compositional_prompts(
    count: int, seed: int, split: Split, categories: tuple[Category, ...] = CATEGORIES
) -> tuple[CompositionalPrompt, ...]:
    """Draw different prompts, in turn from each category.

    Args:
        count: how many; the first prompts of a larger count are those of a smaller one.
        seed: decides which; equal arguments give equal prompts on every machine.
        split: ``"train"``, or ``"held_out"`` for prompts that no seed trains on.
        categories: which; each gets the same share.

    Raises:
        PromptError: a category is unknown, or has not so many prompts.
    """
    unknown = [category for category in categories if category not in MAKERS]
    if unknown or not categories:
        raise PromptError(
            f"Unknown categories {unknown} of compositional prompts. Known are "
            f"{', '.join(CATEGORIES)}."
        )
    rngs = {c: np.random.default_rng(derive_seed(seed, "compositional", c)) for c in categories}
    found: dict[str, CompositionalPrompt] = {}
    for index in range(count):
        category = categories[index % len(categories)]
        prompt = _draw(category, rngs[category], split, found)
        found[prompt.text] = prompt
    return tuple(found.values())


def _draw(
    category: Category, rng: _Rng, split: Split, taken: dict[str, CompositionalPrompt]
) -> CompositionalPrompt:
    for _ in range(_TRIES):
        text = MAKERS[category](rng)
        if text not in taken and is_held_out(text) == (split == "held_out"):
            return CompositionalPrompt(text, category)
    raise PromptError(
        f"The category '{category}' of compositional prompts has too few different ones for the "
        f"split '{split}' (found {len(taken)} in all). Ask for fewer."
    )


def _one(rng: _Rng, choices: tuple[str, ...]) -> str:
    return choices[int(rng.integers(len(choices)))]


def _two(rng: _Rng, choices: tuple[str, ...]) -> tuple[str, str]:
    first, second = rng.choice(len(choices), size=2, replace=False)
    return choices[int(first)], choices[int(second)]


def _nouns(rng: _Rng, *lists: tuple[_Noun, ...]) -> tuple[_Noun, _Noun]:
    nouns = tuple(noun for nouns in lists for noun in nouns)
    first, second = rng.choice(len(nouns), size=2, replace=False)
    return nouns[int(first)], nouns[int(second)]


def a(words: str) -> str:
    """Put the indefinite article that is spoken before words."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _bound(rng: _Rng, words: tuple[str, ...], *lists: tuple[_Noun, ...]) -> str:
    (first, _), (second, _) = _nouns(rng, *lists)
    one, other = _two(rng, words)
    return f"{a(f'{one} {first}')} and {a(f'{other} {second}')}"


def _color(rng: _Rng) -> str:
    return _bound(rng, COLORS, OBJECTS, COLORED)


def _shape(rng: _Rng) -> str:
    return _bound(rng, SHAPES, OBJECTS)


def _texture(rng: _Rng) -> str:
    return _bound(rng, TEXTURES, OBJECTS)


def _spatial(rng: _Rng) -> str:
    (first, _), (second, _) = _nouns(rng, OBJECTS, COLORED, ANIMALS)
    return f"{a(first)} {_one(rng, RELATIONS)} {a(second)}"


def _counting(rng: _Rng) -> str:
    (_, first), (second, seconds) = _nouns(rng, OBJECTS, COLORED, ANIMALS)
    kind = int(rng.integers(3))
    if kind == 0:
        return f"{_one(rng, NUMBERS)} {first} {_one(rng, PLACES)}"
    if kind == 1:
        return f"{_one(rng, NUMBERS)} {first} and {a(second)}"
    return f"{_one(rng, NUMBERS)} {first} and {_one(rng, NUMBERS)} {seconds}"


def _action(rng: _Rng) -> str:
    (first, _), (second, _) = _nouns(rng, PEOPLE, ANIMALS)
    if rng.integers(2):
        return f"{a(first)} {_one(rng, TOGETHER)} {a(second)}"
    return f"{a(first)} {_one(rng, ALONE)} {_one(rng, PLACES)}"


def _complex(rng: _Rng) -> str:
    (first, _), (second, seconds) = _nouns(rng, OBJECTS, COLORED)
    color, other = _two(rng, COLORS)
    thing = a(f"{color} {first}")
    relation, place = _one(rng, RELATIONS), _one(rng, PLACES)
    kind = int(rng.integers(3))
    if kind == 0:
        return f"{thing} {relation} {_one(rng, NUMBERS)} {other} {seconds} {place}"
    if kind == 1:
        (who, _), _ = _nouns(rng, PEOPLE, ANIMALS)
        return f"{a(who)} with {thing} and {a(f'{other} {second}')} {place}"
    return f"{thing} {relation} {a(f'{other} {second}')}, {place}"


MAKERS: dict[Category, Callable[[_Rng], str]] = {
    "color": _color,
    "shape": _shape,
    "texture": _texture,
    "spatial": _spatial,
    "counting": _counting,
    "action": _action,
    "complex": _complex,
}
