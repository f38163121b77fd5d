"""Q-Align (OneAlign): image quality and aesthetics on the scale 1..5 of human opinion scores.

A vision-language model is asked how it rates the image; the score is the expected level under its
probabilities of five words (Wu et al. 2023). The prompt of the image plays no part.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from calibri.errors import RewardError
from calibri.rewards.images import CLIP_MEAN, CLIP_STD, normalise, pad_to_square
from calibri.rewards.mplug_owl2 import MPlugOwl2, OwlSizes, rename
from calibri.rewards.pretrained import read_json, read_sharded
from calibri.rewards.resizing import resize
from calibri.rewards.reward import DifferentiableModelReward, RewardInfo
from calibri.rewards.weights import Checkpoint, load_strict

CHECKPOINT = Checkpoint("q-future/one-align")

# The text never changes, so its tokens under LLaMA's vocabulary are constants; the two parts around
# the image are tokenised apart, and only the first begins with the beginning-of-sequence token.
_BOS = 1
_RATE_THE = (3148, 1001, 29901, 1128, 723, 366, 6554, 278)  # USER: How would you rate the
_OF_THIS_IMAGE = (310, 445, 1967, 29973, 13)  # of this image?\n
_THE = (29871, 13, 22933, 9047, 13566, 29901, 450)  # \nASSISTANT: The
_OF_THE_IMAGE_IS = (310, 278, 1967, 338)  # of the image is
_TASKS = {"quality": (11029,), "aesthetics": (263, 342, 9188, 1199)}
_LEVELS = (15129, 1781, 6534, 6460, 4319)  # excellent, good, fair, poor, bad
_WEIGHTS = (5.0, 4.0, 3.0, 2.0, 1.0)
_VOCABULARY = 32000

_PADDING = (122, 116, 104)  # CLIP's mean colour, cut to whole bytes


def question(task: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Tokens before and after the image for the task ``"quality"`` or ``"aesthetics"``."""
    word = _TASKS[task]
    return (_BOS, *_RATE_THE, *word, *_OF_THIS_IMAGE), (*_THE, *word, *_OF_THE_IMAGE_IS)


class QAlignReward(DifferentiableModelReward):
    """How good the image is technically, from 1 (bad) to 5 (excellent).

    Args:
        checkpoint: holds ``config.json`` and the weights.
        device: where the network runs.
        dtype: of its weights; the original ran in float16.
        batch_size: images per forward.
    """

    name = "qalign"
    task = "quality"

    def __init__(
        self,
        checkpoint: Checkpoint = CHECKPOINT,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        batch_size: int = 8,
    ) -> None:
        super().__init__(device=device, dtype=dtype, batch_size=batch_size)
        self.checkpoint = checkpoint
        self.info = RewardInfo(
            name=self.name,
            variant=f"{checkpoint}/{self.task}/pad-square/pil-bicubic",
            range=(1.0, 5.0),
            unit="opinion score, 1 bad to 5 excellent",
            differentiable=True,
            license="see its card",
        )

    def load(self) -> nn.Module:
        """Build the network with the sizes in ``config.json`` and read its weights."""
        sizes = OwlSizes.from_config(read_json(self.checkpoint, "config.json"))
        if sizes.vocab_size != _VOCABULARY:
            raise RewardError(
                f"Q-Align's question is written in the {_VOCABULARY} tokens of LLaMA, but the "
                f"checkpoint '{self.checkpoint}' has {sizes.vocab_size}. Use {CHECKPOINT.repo_id}."
            )
        # Random initial weights of billions of parameters would take minutes and be overwritten.
        with torch.device("meta"):
            network = MPlugOwl2(sizes).to(self.dtype)
        network.to_empty(device="cpu")
        load_strict(network, read_sharded(self.checkpoint), rename)
        return network

    def score_batch(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Bytes, (N, 3, H, W), to expected levels (N,); the prompts are not used."""
        network = self.model
        assert isinstance(network, MPlugOwl2)
        side = network.sizes.vision.image_size
        squares = resize(pad_to_square(images, _PADDING), (side, side))
        pixels = normalise(squares, CLIP_MEAN, CLIP_STD).to(self.device, self.dtype)
        before, after = (torch.tensor(ids, device=self.device) for ids in question(self.task))
        logits = network(pixels, before, after, torch.tensor(_LEVELS, device=self.device))
        scores: Tensor = logits.softmax(-1) @ torch.tensor(_WEIGHTS, device=self.device)
        return scores


class QAlignAesthetics(QAlignReward):
    """How pleasing the image is, from 1 (bad) to 5 (excellent)."""

    name = "qalign-aesthetics"
    task = "aesthetics"
