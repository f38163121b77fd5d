"""The protocol every reward obeys: it knows images and prompts, nothing else."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from calibri.devices import parse_device
from calibri.errors import RewardError
from calibri.memory import Halving, is_out_of_memory
from calibri.rewards.resizing import rounded

Kind = Literal["pointwise", "groupwise", "corpus"]

PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
"""What a reward may be called."""


@dataclass(frozen=True)
class RewardInfo:
    """What a number of this reward means; printed beside every figure.

    Attributes:
        name: the name users type, for example ``"shapes"``.
        variant: what exactly made the numbers (checkpoint, revision, preprocessing).
        range: smallest and largest possible score.
        unit: how to read a score, in a few words.
        differentiable: whether float images can be scored with a gradient, see
            ``DifferentiableReward``.
        kind: ``"pointwise"`` scores each image alone; ``"groupwise"`` gives every image the value
            of all images of its prompt, which must be passed together; ``"corpus"`` gives every
            image its part of a figure that only the mean over a whole benchmark makes.
        license: of the checkpoint, as its card says.
    """

    name: str
    variant: str
    range: tuple[float, float] = (-inf, inf)
    unit: str = ""
    differentiable: bool = False
    kind: Kind = "pointwise"
    license: str = ""


@runtime_checkable
class Reward(Protocol):
    """Scores images against prompts; higher is better."""

    @property
    def info(self) -> RewardInfo:
        """What a number of this reward means."""
        ...

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Score ``images`` (uint8, N x 3 x H x W) for ``prompts`` (N): float32 (N,) on the CPU.

        A score that is not finite marks an image that could not be scored.
        """
        ...


@runtime_checkable
class DifferentiableReward(Reward, Protocol):
    """A reward that also scores float images with a gradient; its ``info.differentiable`` is true.

    The gradient is of what is smooth: where a score chooses (the best place, the largest channel)
    the choice is held, and where it clips the gradient is 0.
    """

    def score_float(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Score ``images`` (float in [0, 1], N x 3 x H x W, on the CPU): float (N,) on the CPU.

        On images that bytes can hold exactly, the scores are those of ``score``.
        """
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


@runtime_checkable
class UsesMetadata(Protocol):
    """A reward that must know more of a prompt than its text: what a benchmark says of it."""

    def remember(self, metadata: Mapping[str, Mapping[str, Any]]) -> None:
        """Take note of what is known of prompts, before they are scored.

        Args:
            metadata: text of a prompt to what its file or set says of it; adds to what was given
                before. What is of no use to the reward is left alone.
        """
        ...


@runtime_checkable
class SeesSource(Reward, Protocol):
    """A reward of edits: it also sees the picture that a prompt is an instruction for."""

    def score_edits(
        self, images: Tensor, prompts: Sequence[str], sources: Sequence[Tensor]
    ) -> Tensor:
        """Score results against instruction and source.

        Args:
            images: results, uint8 (N, 3, H, W).
            prompts: N instructions.
            sources: N source pictures, uint8 (3, h, w), each of its own size.

        Returns:
            float32 (N,) on the CPU; see ``Reward.score``.
        """
        ...


class PromptCache:
    """Embeddings of prompts: a search asks for the same ones for every candidate.

    Each text is encoded alone, so that its embedding does not depend on what it was asked with.

    Args:
        encode: from one text to its embedding, a tensor of one shape for all texts.
        max_prompts: the least recently used embeddings beyond this number are forgotten.
    """

    def __init__(self, encode: Callable[[str], Tensor], max_prompts: int = 16384) -> None:
        self._encode = encode
        self._max_prompts = max_prompts
        self._known: OrderedDict[str, Tensor] = OrderedDict()

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """Embeddings of N texts, stacked: (N, ...) on the CPU."""
        return torch.stack([self._embedding(prompt) for prompt in prompts])

    def clear(self) -> None:
        """Forget all embeddings, for example after the weights changed."""
        self._known.clear()

    def _embedding(self, prompt: str) -> Tensor:
        if prompt not in self._known:
            with torch.no_grad():
                self._known[prompt] = self._encode(prompt).detach().cpu()
        self._known.move_to_end(prompt)
        if len(self._known) > self._max_prompts:
            self._known.popitem(last=False)
        return self._known[prompt]


class BatchedReward(ABC):
    """Batching and checks shared by the rewards that score image by image.

    A subclass sets ``info`` and implements ``score_batch``. Construction must be cheap: weights
    are loaded on first use. A batch that does not fit in memory is halved, for this call and for
    the ones after it.
    """

    info: RewardInfo

    def __init__(self, batch_size: int = 256) -> None:
        if batch_size < 1:
            raise RewardError(f"batch_size is {batch_size}; it must be at least 1.")
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
            RewardError: the shapes disagree, the reward returned the wrong number of scores, or
                not even one image fits in memory.
        """
        self._check_inputs(images, prompts)
        halving = Halving(self.batch_size)

        def score_rows(rows: Sequence[int]) -> Tensor:
            part = slice(rows[0], rows[-1] + 1)
            return self._checked(images[part], prompts[part])

        try:
            with torch.inference_mode():
                parts = [scores for _, scores in halving.run(range(len(prompts)), score_rows)]
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise RewardError(
                f"Reward '{self.info.name}' has not enough memory for a single image of "
                f"{images.shape[3]} x {images.shape[2]} pixels. Use smaller images, a dtype of 16 "
                "bits or a device with more memory."
            ) from error
        self.batch_size = halving.size
        return torch.cat(parts) if parts else torch.empty(0)

    def _check_inputs(self, images: Tensor, prompts: Sequence[str]) -> None:
        if len(images) != len(prompts):
            raise RewardError(
                f"Reward '{self.info.name}' got {len(images)} images for {len(prompts)} prompts. "
                "Pass one prompt per image."
            )
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise RewardError(
                f"Reward '{self.info.name}' got images of shape {tuple(images.shape)} and dtype "
                f"{images.dtype}. Pass uint8 RGB images of shape (N, 3, height, width)."
            )

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
        self.device = parse_device(device)
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
            # Weights made in inference mode could never take part in a gradient.
            with torch.inference_mode(False):
                network = self.load().to(self.device, self.dtype)
            self._model = network.eval().requires_grad_(False)
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


class DifferentiableModelReward(ModelReward):
    """A reward with a network that is reached from bytes by steps with gradients (``images``).

    A subclass says ``differentiable=True`` in its ``info``, and its ``score_batch`` takes bytes in
    uint8 and in floats alike.
    """

    def score_float(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Score float images in [0, 1], (N, 3, H, W), as the nearest bytes: float32 (N,).

        The gradient is that of what is scored, as if nothing had been rounded on the way.
        """
        return self.score_batch(rounded(images * 255), prompts).float().cpu()
