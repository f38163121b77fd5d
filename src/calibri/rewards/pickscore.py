"""PickScore: how much people prefer an image for its prompt (Kirstain et al., 2023)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from transformers import CLIPConfig

from calibri.rewards.clip import ClipReward, vit_h14
from calibri.rewards.reward import RewardInfo
from calibri.rewards.weights import Checkpoint

DEFAULT = Checkpoint("yuvalkirstain/PickScore_v1")
TOKENIZER = Checkpoint("laion/CLIP-ViT-H-14-laion2B-s32B-b79K")


class PickScore(ClipReward):
    """Temperature times cosine of a CLIP ViT-H/14, raw: about 19 to 24, not divided by 26.

    Args:
        checkpoint: weights, and the tokenizer where it is a folder.
        config: makes the architecture.
        **options: ``device``, ``dtype`` and ``batch_size``, as for every reward with a network.
    """

    published_tokenizer = TOKENIZER

    def __init__(
        self,
        checkpoint: Checkpoint = DEFAULT,
        *,
        config: Callable[[], CLIPConfig] = vit_h14,
        **options: Any,
    ) -> None:
        super().__init__(checkpoint, config, **options)
        self._scale = 0.0
        self.info = RewardInfo(
            name="pickscore",
            variant=f"{checkpoint}, PIL bicubic 224 and centre crop, 77 tokens",
            range=(-100.0, 100.0),
            unit="temperature times cosine, raw",
            differentiable=True,
            license="see its card",
        )

    def load(self) -> nn.Module:
        """Build the network and read its weights.

        Raises:
            RewardError: the weights cannot be had or do not fit.
        """
        model = super().load()
        # Before the weights are cast: half precision moves the temperature by a hundredth, and all
        # scores with it.
        self._scale = float(model.get_parameter("logit_scale").detach().exp())
        return model

    def score_batch(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Score one batch: bytes, (N, 3, H, W), and N prompts to float (N,)."""
        cosines = self.cosines(images, prompts)
        return self._scale * cosines
