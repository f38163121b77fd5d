"""A small network that judges whether a picture of the shapes world shows what a caption says.

It is trained on rendered scenes, near-miss scenes and damaged pictures (see ``training``), shares
nothing with the programmatic score but the world itself, and is meant to be held out: a search
that optimises the one is checked by the other.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from calibri.errors import RewardError
from calibri.shapes.paths import JUDGE_PATH
from calibri.shapes.render import IMAGE_SIZE
from calibri.shapes.scenes import COLORS, RELATIONS, SHAPES, SIZES, Thing, parse_caption

WEIGHTS_FILE = "judge.safetensors"
CONFIG_FILE = "config.json"
FORMAT = 1

_THING_BITS = 1 + len(SIZES) + len(COLORS) + len(SHAPES)
CAPTION_BITS = 2 * _THING_BITS + len(RELATIONS) + 1


def _thing_bits(thing: Thing | None) -> list[float]:
    if thing is None:
        return [0.0] * _THING_BITS
    return [
        1.0,
        *(float(size == thing.size) for size in SIZES),
        *(float(color == thing.color) for color in COLORS),
        *(float(shape == thing.shape) for shape in SHAPES),
    ]


@lru_cache(maxsize=65536)
def _caption_bits(text: str) -> tuple[float, ...]:
    scene = parse_caption(text)
    second = scene.things[1] if len(scene.things) == 2 else None
    return (
        *_thing_bits(scene.things[0]),
        *_thing_bits(second),
        *(float(relation == scene.relation) for relation in RELATIONS),
        float(scene.is_pair_of_equals),
    )


def encode_captions(texts: Sequence[str]) -> Tensor:
    """Captions as slot vectors: float (N, 34), ones and zeros.

    Raises:
        PromptError: a text is not a caption of the shapes world.
    """
    return torch.tensor([_caption_bits(text) for text in texts])


def _coordinates(size: int) -> Tensor:
    """Row and column of each cell of a square map, from -1 to 1: (2, size, size)."""
    axis = torch.linspace(-1, 1, size)
    return torch.stack(torch.meshgrid(axis, axis, indexing="ij"))


class _Residual(nn.Module):
    """Two convolutions around the identity, optionally modulated by a condition (FiLM)."""

    def __init__(self, width: int, condition: int = 0) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.GroupNorm(8, width), nn.GroupNorm(8, width)
        self.conv_1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.conv_2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.film = nn.Linear(condition, 2 * width) if condition else None

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """(N, width, H, W) and an optional (N, condition) to (N, width, H, W)."""
        y = self.norm_2(self.conv_1(functional.silu(self.norm_1(x))))
        if self.film is not None:
            scale, shift = self.film(condition)[:, :, None, None].chunk(2, 1)
            y = y * (1 + scale) + shift
        change: Tensor = self.conv_2(functional.silu(y))
        return x + change


class JudgeNetwork(nn.Module):
    """A convolutional image tower without the caption, then FiLM blocks and a look at each thing.

    Args:
        widths: channels at full, half and quarter resolution; multiples of 8.
        condition: width of the embeddings of the caption and of its things.
    """

    def __init__(self, widths: tuple[int, int, int] = (32, 48, 64), condition: int = 64) -> None:
        super().__init__()
        full, half, quarter = widths
        # Three colours and two coordinates: a relation is about places.
        self.tower = nn.Sequential(
            nn.Conv2d(5, full, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(full, half, 3, stride=2, padding=1),
            _Residual(half),
            nn.Conv2d(half, quarter, 3, stride=2, padding=1),
            _Residual(quarter),
        )
        self.caption = nn.Sequential(nn.Linear(CAPTION_BITS, condition), nn.SiLU())
        self.blocks = nn.ModuleList(_Residual(quarter, condition) for _ in range(2))
        self.thing = nn.Linear(_THING_BITS, quarter)
        self.keys = nn.Conv2d(quarter, quarter, 1)
        self.glance = nn.Sequential(nn.Linear(2 * quarter, condition), nn.SiLU())
        # From zero: which way "above" is shows in the first gradient, unlike in a product of two.
        self.direction = nn.Linear(len(RELATIONS), 2, bias=False)
        nn.init.zeros_(self.direction.weight)
        self.head = nn.Sequential(
            nn.Linear(2 * quarter + 3 * condition + 3, condition),
            nn.SiLU(),
            nn.Linear(condition, condition),
            nn.SiLU(),
            nn.Linear(condition, 1),
        )

    def feature_map(self, images: Tensor) -> Tensor:
        """uint8, or float up to 255, (N, 3, 24, 24) to what the tower sees: (N, quarter, 6, 6)."""
        places = _coordinates(IMAGE_SIZE).expand(len(images), -1, -1, -1)
        result: Tensor = self.tower(torch.cat([images.float() / 127.5 - 1, places], 1))
        return result

    def _look(self, features: Tensor, thing: Tensor) -> tuple[Tensor, Tensor]:
        """Attend to where a thing should be: what is seen there (N, condition), where (N, 2)."""
        query = self.thing(thing)
        keys = self.keys(features).flatten(2)
        attention = ((query[:, None] @ keys) / keys.shape[1] ** 0.5).softmax(-1)
        seen = (attention @ features.flatten(2).transpose(1, 2))[:, 0]
        where = (attention @ _coordinates(features.shape[-1]).flatten(1).T)[:, 0]
        return self.glance(torch.cat([seen, query], 1)), where

    def verdict(self, features: Tensor, captions: Tensor) -> Tensor:
        """What the tower sees and slot vectors (N, 34) to logits (N,)."""
        first, where_first = self._look(features, captions[:, :_THING_BITS])
        second, where_second = self._look(features, captions[:, _THING_BITS : 2 * _THING_BITS])
        offset = where_second - where_first
        asked = self.direction(captions[:, 2 * _THING_BITS : -1])
        x, condition = features, self.caption(captions)
        for block in self.blocks:
            x = block(x, condition)
        x = functional.silu(x)
        along = 4 * (asked * offset).sum(1, keepdim=True)
        summary = [x.mean((2, 3)), x.amax((2, 3)), first, second, condition, offset, along]
        logits: Tensor = self.head(torch.cat(summary, 1)) + along
        return logits[:, 0]

    def forward(self, images: Tensor, captions: Tensor) -> Tensor:
        """uint8 (N, 3, 24, 24) and slot vectors (N, 34) to logits (N,)."""
        return self.verdict(self.feature_map(images), captions)


def load_judge(folder: Path = JUDGE_PATH) -> JudgeNetwork:
    """Load the network and its weights in single precision.

    Raises:
        RewardError: the folder is incomplete or damaged.
    """
    try:
        config = json.loads((folder / CONFIG_FILE).read_text())
        if config["format"] != FORMAT:
            raise ValueError(f"format {config['format']} is not {FORMAT}")
        first, second, third = map(int, config["widths"])
        network = JudgeNetwork((first, second, third), int(config["condition"]))
        weights = load_file(folder / WEIGHTS_FILE)
        network.load_state_dict({name: value.float() for name, value in weights.items()})
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise RewardError(
            f"The judge in '{folder}' cannot be loaded: {error}. Reinstall calibri, or train it "
            "again with training/train_judge.py."
        ) from error
    return network.eval().requires_grad_(False)
