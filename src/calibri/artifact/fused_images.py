"""What rounding into weights does to images: fused beside calibrated, of the same noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from calibri.artifact.apply import applied
from calibri.artifact.calibration import Calibration
from calibri.artifact.generate import Artist, settings_of, texts_of
from calibri.pipelines import load_pipeline

# As much of the effect as a scale may lose to rounding without a word.
_MUCH = 1 / 3


@dataclass(frozen=True)
class FusedDifference:
    """Root mean squares of differences between images, in shares of the range of a pixel.

    Attributes:
        calibrated: between the original's images and those with the calibration loaded.
        fused: between those with the calibration loaded and those of the fused model.
        dtype: in which all three were sampled.
    """

    calibrated: float
    fused: float
    dtype: str

    @property
    def share(self) -> float:
        """What fusing changes in proportion to what the calibration changes."""
        return self.fused / self.calibrated if self.calibrated else 0.0

    def __str__(self) -> str:
        said = (
            f"In {self.dtype} the calibration changes these images by {self.calibrated:.2%} of the "
            f"range of a pixel, and fusing it by another {self.fused:.2%}."
        )
        much = self.share > _MUCH
        return said + " Keep the calibration loaded instead: it does not round." * much


def fused_difference(
    calibration: Calibration,
    folder: Path | str,
    prompts: Sequence[str] | str,
    *,
    pipeline: str | None = None,
    revision: str | None = None,
    strength: float = 1.0,
    seed: int = 0,
    dtype: str | None = None,
    device: str = "auto",
) -> FusedDifference:
    """Compare images of a fused pipeline with those of the original with the calibration loaded.

    Hooks scale what a branch returns; fusing rounds scaled weights to the type they are stored in
    (``survival`` has that site by site). One pipeline is loaded after the other.

    Args:
        calibration: that was fused.
        folder: what ``fuse`` wrote.
        prompts: texts, or one; prompt i is sampled from the noise of ``seed + i``.
        pipeline: a name of the original; None for the calibration's base model.
        revision: of the original.
        strength: at which it was fused.
        seed: of the noise.
        dtype: of the loaded weights; None for that in which the calibration was found.
        device: where to sample.

    Raises:
        CalibriError: a pipeline cannot be loaded or does not sample from prompts alone.
    """
    texts, dtype = texts_of(prompts), dtype or calibration.sampling.dtype
    settings = settings_of(calibration, {})
    name = pipeline or calibration.base_model
    pipe = load_pipeline(name, revision=revision, lora=calibration.lora, dtype=dtype, device=device)
    artist = Artist(pipe, texts, seed, settings)
    original = artist.values()
    with applied(pipe, calibration, strength):
        calibrated = artist.values()
    del artist, pipe
    pipe = load_pipeline(str(folder), dtype=dtype, device=device)
    fused = Artist(pipe, texts, seed, settings).values()
    return FusedDifference(_rms(original, calibrated), _rms(calibrated, fused), dtype)


def _rms(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    squares = [(a.double() - b.double()).square().mean() for a, b in zip(one, other, strict=True)]
    return float(torch.stack(squares).mean().sqrt())
