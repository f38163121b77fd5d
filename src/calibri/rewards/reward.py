"""The protocol every reward obeys: it knows images and prompts, nothing else."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from calibri.errors import RewardError


@dataclass(frozen=True)
class RewardInfo:
    """What a number of this reward means; printed beside every figure.

    Attributes:
        name: the name users type, for example ``"shapes"``.
        variant: what exactly made the numbers (checkpoint, revision, preprocessing).
        range: smallest and largest possible score.
        unit: how to read a score, in a few words.
        differentiable: whether ``score`` has a gradient with respect to float images.
    """

    name: str
    variant: str
    range: tuple[float, float] = (-inf, inf)
    unit: str = ""
    differentiable: bool = False


@runtime_checkable
class Reward(Protocol):
    """Scores images against prompts; higher is better."""

    info: RewardInfo

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Score ``images`` (uint8, N x 3 x H x W) for ``prompts`` (N): float32 (N,) on the CPU."""
        ...


@runtime_checkable
class FeatureReward(Reward, Protocol):
    """A reward whose network also gives features of images, for a Frechet distance."""

    def features(self, images: Tensor) -> Tensor:
        """Features of ``images`` (uint8, N x 3 x H x W) that ignore the prompt: float32 (N, D)."""
        ...

    def reference_features(self, prompts: Sequence[str], seed: int) -> Tensor | None:
        """Features of real images of ``prompts``, float32 (N, D), or None when there are none."""
        ...


class BatchedReward(ABC):
    """Batching and checks shared by the rewards that score image by image.

    A subclass sets ``info`` and implements ``score_batch``. Construction must be cheap: weights
    are loaded on first use.
    """

    info: RewardInfo

    def __init__(self, batch_size: int = 256) -> None:
        self.batch_size = batch_size

    @abstractmethod
    def score_batch(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Score one batch: uint8 (N, 3, H, W) and N prompts to float (N,)."""

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Score images against their prompts.

        Args:
            images: uint8, shape (N, 3, H, W).
            prompts: N texts.

        Returns:
            float32 (N,) on the CPU; a score that is not finite marks a failed image.

        Raises:
            RewardError: the shapes disagree or the reward returned the wrong number of scores.
        """
        if len(images) != len(prompts):
            raise RewardError(
                f"Reward '{self.info.name}' got {len(images)} images for {len(prompts)} prompts. "
                "Pass one prompt per image."
            )
        with torch.inference_mode():
            parts = [
                self._checked(images[i : i + self.batch_size], prompts[i : i + self.batch_size])
                for i in range(0, len(prompts), self.batch_size)
            ]
        return torch.cat(parts) if parts else torch.empty(0)

    def _checked(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        scores = self.score_batch(images, prompts).float().cpu()
        if scores.shape != (len(prompts),):
            raise RewardError(
                f"Reward '{self.info.name}' returned scores of shape {tuple(scores.shape)} for "
                f"{len(prompts)} images. A reward must return one number per image."
            )
        return scores


class ModelReward(BatchedReward):
    """A reward with a network, loaded on first use.

    A subclass sets ``info`` and implements ``load`` and ``score_batch``; ``self.model`` is the
    loaded network, on ``self.device``, in evaluation mode.

    Args:
        device: where the network runs.
        dtype: of its weights.
        batch_size: images per forward.
    """

    def __init__(
        self,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        batch_size: int = 16,
    ) -> None:
        super().__init__(batch_size)
        self.device = torch.device(device)
        self.dtype = dtype
        self._model: nn.Module | None = None

    @abstractmethod
    def load(self) -> nn.Module:
        """Build the network and read its weights; called once.

        Raises:
            RewardError: the weights cannot be had or do not fit.
        """

    @property
    def model(self) -> nn.Module:
        """The network, loaded now if it was not before."""
        if self._model is None:
            self._model = self.load().to(self.device, self.dtype).eval().requires_grad_(False)
        return self._model

    def to(self, device: str | torch.device) -> ModelReward:
        """Move the network, for example to the CPU between scoring phases."""
        self.device = torch.device(device)
        if self._model is not None:
            self._model.to(self.device)
        return self

    def close(self) -> None:
        """Free the network's memory; it is loaded again when it is next needed."""
        self._model = None
