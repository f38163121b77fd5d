"""The programmatic score of the shapes world as a reward."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from calibri.errors import PromptError, RewardError
from calibri.rewards.reward import BatchedReward, RewardInfo
from calibri.shapes import IMAGE_SIZE, compositional_score


class ShapesReward(BatchedReward):
    """Compositional score of 24 x 24 pictures of the shapes world, in [0, 1]."""

    info = RewardInfo(
        name="shapes",
        variant="compositional, strict realism, 1",
        range=(0.0, 1.0),
        unit="product of soft decisions; a rendered scene has about 0.7",
        differentiable=True,
    )

    def __init__(self, batch_size: int = 32) -> None:
        super().__init__(batch_size)

    def score_batch(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Score one batch: uint8 (N, 3, 24, 24) and N captions to float (N,).

        Raises:
            RewardError: the pictures have another size, or a text is not a caption.
        """
        return self.score_float(images.float() / 255, prompts)

    def score_float(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Score float images in [0, 1], (N, 3, 24, 24), with a gradient: float (N,).

        Raises:
            RewardError: the pictures have another size, or a text is not a caption.
        """
        if images.shape[1:] != (3, IMAGE_SIZE, IMAGE_SIZE):
            raise RewardError(
                f"Reward 'shapes' scores RGB images of {IMAGE_SIZE} x {IMAGE_SIZE} pixels and got "
                f"shape {tuple(images.shape)}. It belongs to the shipped shapes pipeline; use "
                "another reward for other pipelines."
            )
        try:
            return compositional_score(images, prompts)
        except PromptError as error:
            raise RewardError(f"Reward 'shapes' cannot read a caption: {error}") from error
