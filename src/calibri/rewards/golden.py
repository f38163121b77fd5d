"""Golden pictures: what a reward gives on six small pictures that everyone can make exactly.

A user with the weights of a reward scores them and sees the difference from the stored figures,
which belong to one variant of the reward and to exactly these pictures.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, FiniteFloat, TypeAdapter, ValidationError
from torch import Tensor

from calibri.errors import RewardError
from calibri.rewards.registry import RewardSource, make_reward
from calibri.rewards.reward import ModelReward, RewardInfo
from calibri.shapes import IMAGE_SIZE, draw_captions

STORED_PATH: Path = Path(__file__).parent / "golden.json"
"""Figures by reward and variant."""

ENLARGEMENT = 16
_OF_THE_SMALL_WORLD = ("shapes", "shapes-judge")  # they score its pictures as they are drawn

# Two pictures a prompt, for the rewards that compare the pictures of one prompt.
_RELATION = "a large red circle above a small blue square"
_COUNT = "two green triangles"
_SINGLE = "a large yellow cross"
_SCENES = {
    "relation": (_RELATION, _RELATION),
    "relation-reversed": (_RELATION, "a large red circle below a small blue square"),
    "count": (_COUNT, _COUNT),
    "single": (_SINGLE, _SINGLE),
}


@dataclass(frozen=True)
class GoldenPictures:
    """Pictures with their names and prompts.

    Attributes:
        names: of the N pictures.
        prompts: N captions of the shapes world.
        images: uint8 (N, 3, size, size).
    """

    names: tuple[str, ...]
    prompts: tuple[str, ...]
    images: Tensor

    @property
    def sha256(self) -> str:
        """Digest of prompts and pixels: figures of other pictures cannot be compared."""
        digest = hashlib.sha256("\n".join(self.prompts).encode())
        digest.update(repr(tuple(self.images.shape)).encode())
        digest.update(self.images.contiguous().numpy().tobytes())
        return digest.hexdigest()


def golden_pictures(enlargement: int = ENLARGEMENT) -> GoldenPictures:
    """Draw the golden pictures: four scenes, one of them wrong, a gradient and noise.

    Args:
        enlargement: each pixel of a scene becomes a square of this side; the gradient and the
            noise are made at the final size, 24 times this number.
    """
    drawn = draw_captions([shown for _, shown in _SCENES.values()], seed=0)
    enlarged = drawn.repeat_interleave(enlargement, 2).repeat_interleave(enlargement, 3)
    size = IMAGE_SIZE * enlargement
    images = torch.cat([enlarged, torch.stack([_gradient(size), _noise(size)])])
    prompts = (*(asked for asked, _ in _SCENES.values()), _SINGLE, _COUNT)
    return GoldenPictures((*_SCENES, "gradient", "noise"), prompts, images)


def _gradient(size: int) -> Tensor:
    """Red grows to the right, green downwards, blue along the diagonal; integers only."""
    steps = torch.arange(size)
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    return (torch.stack([2 * x, 2 * y, x + y]) * 255 // (2 * size - 2)).to(torch.uint8)


def _noise(size: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(256, (3, size, size), generator=generator).to(torch.uint8)


class StoredFigures(BaseModel):
    """Scores of one variant, by picture, and the digest of the pictures they belong to."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    pictures: str
    scores: dict[str, FiniteFloat]


_FILE = TypeAdapter(dict[str, dict[str, StoredFigures]])


def stored_figures(path: Path = STORED_PATH) -> dict[str, dict[str, StoredFigures]]:
    """Read stored figures by name and variant of a reward.

    Raises:
        RewardError: the file cannot be read, or is malformed.
    """
    try:
        return _FILE.validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise RewardError(
            f"Cannot read the stored figures in '{path}': {error}. Reinstall calibri."
        ) from error


@dataclass(frozen=True)
class GoldenCheck:
    """What a reward gave on the golden pictures, beside the stored figures.

    Attributes:
        info: of the reward that scored.
        pictures: what it scored.
        scores: N scores; one that is not finite marks a picture that could not be scored.
        stored: N figures for the same pictures, or None when there are none.
        stored_variants: variants of this reward that there are figures for.
    """

    info: RewardInfo
    pictures: GoldenPictures
    scores: tuple[float, ...]
    stored: tuple[float, ...] | None
    stored_variants: tuple[str, ...]

    @property
    def differences(self) -> tuple[float, ...] | None:
        """Scores minus stored figures; None without figures."""
        if self.stored is None:
            return None
        return tuple(now - then for now, then in zip(self.scores, self.stored, strict=True))


def check_reward(
    source: RewardSource,
    *,
    checkpoint: Path | str | None = None,
    device: str | None = None,
    variant: str | None = None,
    stored: Path = STORED_PATH,
) -> GoldenCheck:
    """Score the golden pictures and look up the stored figures.

    Args:
        source: scores them, see ``make_reward``; the rewards of the shapes world get them as they
            are drawn, all others enlarged.
        checkpoint: folder with the reward's files instead of the hub's.
        device: where a network scores; None for where the reward is.
        variant: whose figures to compare with. By default those of the reward, and with a
            ``checkpoint`` those of the hub's files, since the variant of a folder names the folder.
        stored: file of figures.

    Raises:
        RewardError: the reward cannot be made or cannot score them, or the file of figures is
            damaged.
    """
    options = {} if checkpoint is None else {"checkpoint": checkpoint}
    reward = make_reward(source, **options)
    if device is not None and isinstance(reward, ModelReward):
        reward.to(device)
    if checkpoint is not None and variant is None:
        variant = make_reward(source).info.variant
    info = reward.info
    known = stored_figures(stored).get(info.name, {})
    pictures = golden_pictures(1 if info.name in _OF_THE_SMALL_WORLD else ENLARGEMENT)
    figures = known.get(variant or info.variant)
    scores = reward.score(pictures.images, pictures.prompts)
    return GoldenCheck(
        info,
        pictures,
        tuple(scores.tolist()),
        _of_these(figures, pictures),
        tuple(known),
    )


def _of_these(figures: StoredFigures | None, pictures: GoldenPictures) -> tuple[float, ...] | None:
    if figures is None or figures.pictures != pictures.sha256:
        return None
    if figures.scores.keys() != set(pictures.names):
        raise RewardError(
            f"The stored figures are for {', '.join(figures.scores)} and the pictures are "
            f"{', '.join(pictures.names)}. Reinstall calibri."
        )
    return tuple(figures.scores[name] for name in pictures.names)
