"""How different images are by DINO: those of one prompt, or a result from its source picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import Dinov2Model, ViTModel

from calibri.errors import RewardError
from calibri.rewards.images import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    center_crop,
    normalise,
    resize_short_side,
)
from calibri.rewards.pretrained import load_pretrained, read_json
from calibri.rewards.reward import DifferentiableModelReward, RewardInfo
from calibri.rewards.weights import Checkpoint

DEFAULT = Checkpoint("facebook/dinov2-base")
RESIZE, CROP = 256, 224


def mean_dissimilarity(features: Tensor) -> Tensor:
    """1 less the mean cosine over all pairs of rows of (n, D), n >= 2; unbiased in n: ()."""
    unit = functional.normalize(features.float(), dim=-1)
    count = len(unit)
    # The squared length of the sum holds every pair twice, and each row with itself.
    pairs = (unit.sum(0).square().sum() - unit.square().sum()) / (count * (count - 1))
    return 1.0 - pairs


class _Dino(DifferentiableModelReward):
    """Features of a DINO network.

    Args:
        checkpoint: a DINOv2 or DINO (ViT) model of transformers; the CLS token after the last norm
            is the feature.
        **options: ``device``, ``dtype`` and ``batch_size``, as for every reward with a network.
    """

    def __init__(self, checkpoint: Checkpoint = DEFAULT, **options: Any) -> None:
        super().__init__(**options)
        self.checkpoint = checkpoint
        self._variant = (
            f"{checkpoint}, CLS after the last norm, PIL bicubic {RESIZE} and centre crop {CROP}"
        )

    def load(self) -> nn.Module:
        """Build the network and read its weights.

        Raises:
            RewardError: the weights cannot be had, do not fit, or are of another kind of model.
        """
        kind = read_json(self.checkpoint, "config.json").get("model_type")
        if kind == "dinov2":
            return load_pretrained(Dinov2Model, self.checkpoint)
        if kind == "vit":
            return load_pretrained(
                ViTModel, self.checkpoint, leave_out=("pooler.",), add_pooling_layer=False
            )
        raise RewardError(
            f"'{self.checkpoint}' is a '{kind}' model. Use a DINOv2 ('dinov2') or DINO ('vit') one."
        )

    def features(self, images: Tensor) -> Tensor:
        """Features of bytes, (N, 3, H, W): float32 (N, D) on the CPU."""
        starts = range(0, len(images), self.batch_size)
        return torch.cat([self._features(images[i : i + self.batch_size]) for i in starts])

    def reference_features(self, prompts: Sequence[str], seed: int) -> None:
        """There are no real images to compare with."""

    def _features(self, images: Tensor) -> Tensor:
        crops = center_crop(resize_short_side(images, RESIZE), CROP)
        pixels = normalise(crops, IMAGENET_MEAN, IMAGENET_STD).to(self.device, self.dtype)
        states: Tensor = self.model(pixels).last_hidden_state
        return states[:, 0].float().cpu()


class DinoDiversity(_Dino):
    """1 less the mean pairwise cosine of DINO features among the images of one prompt.

    Every image of a prompt gets its group's value, so that the mean over images weighs prompts by
    their number of images. All images of a prompt must come in one call.

    Args:
        checkpoint: a DINOv2 or DINO (ViT) model of transformers; the CLS token after the last norm
            is the feature.
        **options: ``device``, ``dtype`` and ``batch_size``, as for every reward with a network.
    """

    def __init__(self, checkpoint: Checkpoint = DEFAULT, **options: Any) -> None:
        super().__init__(checkpoint, **options)
        self.info = RewardInfo(
            name="dino-diversity",
            variant=self._variant,
            range=(0.0, 2.0),
            unit="1 - mean pairwise cosine within a prompt",
            kind="groupwise",
            differentiable=True,
            license="see its card",
        )

    def score_batch(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Score whole groups: bytes, (N, 3, H, W), and N prompts to float (N,).

        Raises:
            RewardError: a prompt has one image only.
        """
        groups: dict[str, list[int]] = {}
        for row, prompt in enumerate(prompts):
            groups.setdefault(prompt, []).append(row)
        alone = [prompt for prompt, rows in groups.items() if len(rows) == 1]
        if alone:
            raise RewardError(
                f"Reward 'dino-diversity' compares the images of a prompt, and {len(alone)} "
                f"prompts have one image only, such as {alone[0][:80]!r}. Give at least two "
                "images a prompt, with different seeds, in one call."
            )
        features = self.features(images)
        scores = torch.empty(len(prompts))
        for rows in groups.values():
            scores[rows] = mean_dissimilarity(features[rows])
        return scores

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Score whole groups; unlike other rewards' images they are never split into batches.

        Args:
            images: uint8, shape (N, 3, H, W).
            prompts: N texts; images of one text are one group.

        Returns:
            float32 (N,) on the CPU: to each image the value of its group.

        Raises:
            RewardError: the shapes disagree, or a prompt has one image only.
        """
        self._check_inputs(images, prompts)
        with torch.inference_mode():
            return self.score_batch(images, prompts) if prompts else torch.empty(0)


class DinoSource(_Dino):
    """Cosine of the DINO features of a result and of the picture that its prompt edits.

    It says how much of the source is kept and nothing of the instruction, so it is half of an
    objective: mix it with a reward of the prompt.

    Args:
        checkpoint: as of ``DinoDiversity``.
        **options: ``device``, ``dtype`` and ``batch_size``, as for every reward with a network.
    """

    def __init__(self, checkpoint: Checkpoint = DEFAULT, **options: Any) -> None:
        super().__init__(checkpoint, **options)
        self.info = RewardInfo(
            name="dino-source",
            variant=self._variant,
            range=(-1.0, 1.0),
            unit="cosine of a result and its source picture",
            license="see its card",
        )

    def score_batch(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Refuse results without their sources.

        Raises:
            RewardError: always; see ``score_edits``.
        """
        raise RewardError(
            "Reward 'dino-source' compares results with source pictures, and none were given. "
            'Give each prompt an "image" in a file of JSON lines.'
        )

    def score_edits(
        self, images: Tensor, prompts: Sequence[str], sources: Sequence[Tensor]
    ) -> Tensor:
        """Score results against their sources: float32 (N,) on the CPU, see ``SeesSource``.

        Raises:
            RewardError: the shapes disagree, or there is not one source for each image.
        """
        self._check_inputs(images, prompts)
        if len(sources) != len(images):
            raise RewardError(
                f"Reward 'dino-source' got {len(sources)} source pictures for {len(images)} "
                "images. Pass one for each."
            )
        with torch.inference_mode():
            before = [self._features(source[None]) for source in sources]
            if not before:
                return torch.empty(0)
            return functional.cosine_similarity(self.features(images), torch.cat(before))
