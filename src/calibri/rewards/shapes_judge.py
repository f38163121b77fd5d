"""The judge of the shapes world as a reward, which is meant to be held out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from calibri.errors import PromptError, RewardError
from calibri.rewards.reward import BatchedReward, RewardInfo
from calibri.shapes import IMAGE_SIZE, JudgeNetwork, draw_captions, encode_captions, load_judge


class ShapesJudge(BatchedReward):
    """Probability that a picture is a proper one of what the caption says, in [0, 1]."""

    info = RewardInfo(
        name="shapes-judge",
        variant="film-cnn, 2",
        range=(0.0, 1.0),
        unit="probability of a right and undamaged picture",
        differentiable=True,
    )

    def __init__(self, batch_size: int = 128) -> None:
        super().__init__(batch_size)
        self._network: JudgeNetwork | None = None

    @property
    def network(self) -> JudgeNetwork:
        """The network; loaded on first use."""
        if self._network is None:
            with torch.inference_mode(False):
                self._network = load_judge()
        return self._network

    def score_batch(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Score one batch: uint8 (N, 3, 24, 24) and N captions to float (N,).

        Raises:
            RewardError: the pictures have another size, or a text is not a caption.
        """
        self._check_size(images)
        try:
            captions = encode_captions(prompts)
        except PromptError as error:
            raise RewardError(f"Reward 'shapes-judge' cannot read a caption: {error}") from error
        return torch.sigmoid(self.network(images, captions))

    def score_float(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Score float images in [0, 1], (N, 3, 24, 24), with a gradient: float (N,).

        Raises:
            RewardError: the pictures have another size, or a text is not a caption.
        """
        return self.score_batch(images * 255, prompts)

    def features(self, images: Tensor) -> Tensor:
        """Features of uint8 (N, 3, 24, 24) for Frechet distances, whatever the caption: (N, D).

        They are the image tower's means over the picture, before any caption enters.

        Raises:
            RewardError: the pictures have another size.
        """
        self._check_size(images)
        with torch.inference_mode():
            parts = [
                self.network.feature_map(x).mean((2, 3))
                for x in torch.split(images, self.batch_size)
            ]
        return torch.cat(parts)

    def reference_features(self, prompts: Sequence[str], seed: int) -> Tensor:
        """Features of one rendered scene per caption: float32 (N, D).

        Args:
            prompts: N captions.
            seed: of what captions leave open, such as places and backgrounds.

        Raises:
            PromptError: a text is not a caption.
        """
        return self.features(draw_captions(prompts, seed))

    def _check_size(self, images: Tensor) -> None:
        if images.shape[1:] != (3, IMAGE_SIZE, IMAGE_SIZE):
            raise RewardError(
                f"Reward 'shapes-judge' scores RGB images of {IMAGE_SIZE} x {IMAGE_SIZE} pixels "
                f"and got shape {tuple(images.shape)}. It belongs to the shipped shapes pipeline; "
                "use another reward for other pipelines."
            )
