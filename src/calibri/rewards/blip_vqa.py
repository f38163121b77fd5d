"""BLIP-VQA: the probability that BLIP answers yes to a question about an image.

T2I-CompBench++ asks one question for every noun chunk of an attribute prompt and multiplies.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BlipConfig, BlipForQuestionAnswering, BlipTextConfig, BlipVisionConfig

from calibri.errors import RewardError
from calibri.rewards.blip import from_original, text_base, vision_base
from calibri.rewards.clip import WEIGHTS_FILE
from calibri.rewards.empty_weights import no_init_weights
from calibri.rewards.images import CLIP_MEAN, CLIP_STD, normalise
from calibri.rewards.pretrained import load_tokenizer
from calibri.rewards.resizing import resize
from calibri.rewards.reward import DifferentiableModelReward, RewardInfo
from calibri.rewards.weights import Checkpoint, load_strict, read_tensors

DEFAULT = Checkpoint("Salesforce/blip-vqa-capfilt-large")
IMAGE_SIZE = 480
MAX_TOKENS = 35
MAX_WORDS = 50

_PUNCTUATION = re.compile(r"[.!\"()*#:;~]")
_POSITIONS = "vision_model.embeddings.position_embedding"
# Tied in the model; files keep one of the two.
_TIED = {
    "text_decoder.cls.predictions.decoder.weight": "text_decoder.bert.embeddings."
    "word_embeddings.weight",
    "text_decoder.cls.predictions.decoder.bias": "text_decoder.cls.predictions.bias",
}


def clean_question(text: str) -> str:
    """Write a question as BLIP was trained on them: lower case, less punctuation, 50 words."""
    words = _PUNCTUATION.sub("", text.lower()).rstrip(" ").split(" ")
    return " ".join(words[:MAX_WORDS])


@dataclass(frozen=True)
class Architecture:
    """Architecture of a BLIP for questions, from the sizes a checkpoint does not fix itself.

    Attributes:
        vision: makes the image tower's from the image size its position embeddings are for.
        text: makes the text towers' from the width of the image tower.
    """

    vision: Callable[[int], BlipVisionConfig] = vision_base
    text: Callable[[int], BlipTextConfig] = text_base

    def config(self, image_size: int) -> BlipConfig:
        """Make the configuration for position embeddings of an image size."""
        vision = self.vision(image_size)
        text = self.text(vision.hidden_size)
        # transformers 4 takes mappings only.
        return BlipConfig(vision_config=vision.to_dict(), text_config=text.to_dict())


def build(tensors: Mapping[str, Tensor], architecture: Architecture) -> nn.Module:
    """Build BLIP for questions from a checkpoint of transformers or of the original authors.

    Raises:
        RewardError: keys or shapes do not match.
    """
    renamed = {new: value for key, value in tensors.items() if (new := from_original(key))}
    if _POSITIONS not in renamed:
        raise RewardError(
            f"The checkpoint has no '{_POSITIONS}'. Use BLIP's checkpoint for question answering."
        )
    for tied, source in _TIED.items():
        if tied not in renamed and source in renamed:
            renamed[tied] = renamed[source]
    patches = renamed[_POSITIONS].shape[1] - 1
    image_size = math.isqrt(patches) * architecture.vision(IMAGE_SIZE).patch_size
    with no_init_weights():
        model: nn.Module = BlipForQuestionAnswering(architecture.config(image_size))
    load_strict(model, renamed, lambda key: key)
    return model


class BlipVqa(DifferentiableModelReward):
    """Probability that BLIP answers yes rather than no to "{prompt}?".

    Args:
        checkpoint: weights and tokenizer.
        architecture: of the network.
        **options: ``device``, ``dtype`` and ``batch_size``, as for every reward with a network.
    """

    def __init__(
        self,
        checkpoint: Checkpoint = DEFAULT,
        *,
        architecture: Architecture | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.checkpoint = checkpoint
        self._architecture = architecture or Architecture()
        self._tokenizer: Any = None
        self.info = RewardInfo(
            name="blip-vqa",
            variant=f"{checkpoint}, PIL bicubic to {IMAGE_SIZE} x {IMAGE_SIZE}, {MAX_TOKENS} "
            "tokens, whole prompt as one question",
            range=(0.0, 1.0),
            unit="P(yes) / (P(yes) + P(no))",
            differentiable=True,
            license="see its card",
        )

    def load(self) -> nn.Module:
        """Build the network and read its weights.

        Raises:
            RewardError: the weights cannot be had or do not fit.
        """
        return build(read_tensors(self.checkpoint.file(WEIGHTS_FILE)), self._architecture)

    def tokens(self, question: str) -> list[int]:
        """Token ids of a question, at most 35."""
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self.checkpoint)
        text = clean_question(question)
        ids: list[int] = self._tokenizer(text, truncation=True, max_length=MAX_TOKENS)["input_ids"]
        return ids

    def embed(self, images: Tensor) -> Tensor:
        """Image states of bytes, (N, 3, H, W): (N, 1 + patches, D)."""
        model: Any = self.model
        # Squashed to a square, not cropped: T2I-CompBench's preprocessing.
        resized = resize(images, (IMAGE_SIZE, IMAGE_SIZE))
        pixels = normalise(resized, CLIP_MEAN, CLIP_STD).to(self.device, self.dtype)
        states: Tensor = model.vision_model(pixels, interpolate_pos_encoding=True).last_hidden_state
        return states

    def answer(self, states: Tensor, questions: Sequence[str]) -> Tensor:
        """P(yes) / (P(yes) + P(no)) for image states (N, P, D) and N questions: float32 (N,)."""
        ids = [self.tokens(question) for question in questions]
        scores = torch.empty(len(ids), device=self.device)
        # Questions of one length go together, without padding: BLIP in transformers ignores the
        # mask of what it cross-attends to, so the answer would look at the padding.
        for length in sorted({len(row) for row in ids}):
            rows = [row for row, found in enumerate(ids) if len(found) == length]
            tokens = torch.tensor([ids[row] for row in rows], device=self.device)
            scores[rows] = self._answer(states[rows], tokens)
        return scores

    def _answer(self, states: Tensor, input_ids: Tensor) -> Tensor:
        model: Any = self.model
        start = model.config.text_config.bos_token_id
        # BLIP replaces [CLS] by its own [ENC], the token after the decoder's start.
        input_ids[:, 0] = start + 1
        encoded = model.text_encoder(input_ids, encoder_hidden_states=states).last_hidden_state
        begin = torch.full((len(input_ids), 1), start, device=self.device)
        decoded = model.text_decoder(begin, encoder_hidden_states=encoded)
        yes, no = self._tokenizer.convert_tokens_to_ids(["yes", "no"])
        logits: Tensor = decoded.logits[:, 0].float()
        return torch.sigmoid(logits[:, yes] - logits[:, no])

    def score_batch(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Score one batch: bytes, (N, 3, H, W), and N prompts to float (N,)."""
        return self.answer(self.embed(images), [f"{prompt}?" for prompt in prompts])
