"""ImageReward: human preference from BLIP with a linear head (Xu et al., 2023)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

from calibri.rewards.aesthetic import score_head
from calibri.rewards.blip import from_original, text_base, vision_large
from calibri.rewards.empty_weights import no_init_weights
from calibri.rewards.images import ROUND, clip_pixels
from calibri.rewards.pretrained import load_tokenizer, read_converted
from calibri.rewards.reward import DifferentiableModelReward, RewardInfo
from calibri.rewards.weights import Checkpoint, load_strict

DEFAULT = Checkpoint("THUDM/ImageReward")
TOKENIZER = Checkpoint("google-bert/bert-base-uncased")
WEIGHTS_FILE = "ImageReward.pt"

# Mean and deviation of the raw score over ImageReward's own data; published scores are z-scores.
MEAN, STD = 0.16717362830052426, 1.0333394966054072
MAX_TOKENS = 35


class _ImageReward(nn.Module):
    def __init__(self, vision: BlipVisionConfig, text: BlipTextConfig) -> None:
        super().__init__()
        self.vision_model = BlipVisionModel(vision)
        self.text_encoder = BlipTextModel(text, add_pooling_layer=False)
        self.mlp = nn.ModuleDict({"layers": score_head(text.hidden_size)})

    def forward(self, pixels: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """float (N, 3, S, S) and tokens (N, L) to raw scores (N,)."""
        image = self.vision_model(pixels).last_hidden_state
        # The configuration says decoder only so that cross-attention exists; the text is read in
        # both directions.
        states = self.text_encoder(
            input_ids,
            attention_mask=attention_mask,
            encoder_hidden_states=image,
            encoder_attention_mask=torch.ones(image.shape[:2], device=image.device),
            is_decoder=False,
        ).last_hidden_state
        scores: Tensor = self.mlp["layers"](states[:, 0])
        return scores[:, 0]


class ImageReward(DifferentiableModelReward):
    """ImageReward's z-score; reads the first 35 tokens of a prompt.

    Args:
        checkpoint: weights (converted to safetensors), and the tokenizer where it is a folder.
        vision: makes the image tower's architecture.
        text: makes the text tower's from the width of the image tower.
        **options: ``device``, ``dtype`` and ``batch_size``, as for every reward with a network.
    """

    def __init__(
        self,
        checkpoint: Checkpoint = DEFAULT,
        *,
        vision: Callable[[], BlipVisionConfig] = vision_large,
        text: Callable[[int], BlipTextConfig] = text_base,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.checkpoint = checkpoint
        self.vision = vision()
        self.text = text(self.vision.hidden_size)
        self._tokenizer: Any = None
        self.info = RewardInfo(
            name="imagereward",
            variant=f"{WEIGHTS_FILE} of {checkpoint}, PIL bicubic 224 and centre crop, "
            f"{MAX_TOKENS} tokens",
            unit="z-score",
            differentiable=True,
            license="see its card",
        )

    def load(self) -> nn.Module:
        """Build the network and read its weights.

        Raises:
            RewardError: the weights cannot be had or do not fit.
        """
        tensors = read_converted(self.checkpoint, WEIGHTS_FILE)
        with no_init_weights():
            model = _ImageReward(self.vision, self.text)
        load_strict(model, tensors, lambda key: from_original(key.removeprefix("blip.")))
        return model

    def tokens(self, prompts: Sequence[str]) -> Any:
        """Tokens of N prompts, padded or cut to 35: ``input_ids`` and ``attention_mask``."""
        if self._tokenizer is None:
            at = self.checkpoint if self.checkpoint.folder else TOKENIZER
            self._tokenizer = load_tokenizer(at)
        return self._tokenizer(
            list(prompts),
            padding="max_length",
            truncation=True,
            max_length=MAX_TOKENS,
            return_tensors="pt",
        ).to(self.device)

    def score_batch(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Score one batch: bytes, (N, 3, H, W), and N prompts to float (N,)."""
        model, tokens = self.model, self.tokens(prompts)
        pixels = clip_pixels(images, self.vision.image_size, ROUND).to(self.device, self.dtype)
        raw: Tensor = model(pixels, tokens["input_ids"], tokens["attention_mask"])
        return (raw.float() - MEAN) / STD
