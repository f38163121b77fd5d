"""VQAScore: the probability that CLIP-FlanT5 answers yes to whether an image shows the prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import CLIPVisionConfig, CLIPVisionModel, T5Config, T5ForConditionalGeneration

from calibri.errors import RewardError
from calibri.rewards.clip import WEIGHTS_FILE, vision_l14
from calibri.rewards.empty_weights import no_init_weights
from calibri.rewards.images import (
    CLIP_MEAN,
    CLIP_STD,
    normalise,
    pad_to_square,
    resize_short_side,
)
from calibri.rewards.pretrained import load_tokenizer, read_json, read_sharded
from calibri.rewards.reward import DifferentiableModelReward, RewardInfo
from calibri.rewards.weights import Checkpoint, load_strict, read_tensors

DEFAULT = Checkpoint("zhiqiulin/clip-flant5-xxl")
TOKENIZER = Checkpoint("google/flan-t5-xxl")
VISION = Checkpoint("openai/clip-vit-large-patch14-336")

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions."
)
# The image's tokens stand between the two.
BEFORE = f"{SYSTEM} USER: "
AFTER = '\nDoes this figure show "{prompt}"? Please answer yes or no. ASSISTANT: '
ANSWER = "Yes"
MAX_TOKENS = 2048
PROJECTOR = "mlp2x_gelu"

_IGNORED = {"model_type", "architectures", "transformers_version", "dtype", "torch_dtype"}
_VISION_KEYS = "vision_tower.vision_tower.vision_model."
_SHARED = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")


class ClipT5(nn.Module):
    """T5 that reads projected CLIP patches between two pieces of text.

    Args:
        settings: of the checkpoint: T5's own, and which layer and tokens of CLIP it reads.
        vision: architecture of the image tower.

    Raises:
        RewardError: the projector is of another kind.
    """

    def __init__(self, settings: dict[str, Any], vision: CLIPVisionConfig) -> None:
        super().__init__()
        kind = settings.get("mm_projector_type", PROJECTOR)
        if kind != PROJECTOR:
            raise RewardError(
                f"The checkpoint's projector is '{kind}', not '{PROJECTOR}'. Use "
                "clip-flant5-xxl or clip-flant5-xl."
            )
        self._layer = int(settings.get("mm_vision_select_layer", -2))
        # "patch" drops the CLS token; scores are another two per cent away with it.
        self._first = 1 if settings.get("mm_vision_select_feature", "patch") == "patch" else 0
        known = T5Config().to_dict().keys() - _IGNORED
        config = T5Config(**{key: settings[key] for key in known & settings.keys()})
        self.t5 = T5ForConditionalGeneration(config)
        # transformers shares the head with the embeddings whatever the configuration says; FLAN-T5
        # has its own, and loading both into one tensor would keep the last without a word.
        self.t5.lm_head.weight = nn.Parameter(torch.empty_like(self.t5.shared.weight))
        self._start = int(settings.get("decoder_start_token_id", config.pad_token_id))
        self.vision = CLIPVisionModel(vision)
        width = config.d_model
        self.projector = nn.Sequential(
            nn.Linear(vision.hidden_size, width), nn.GELU(), nn.Linear(width, width)
        )

    def encode_images(self, pixels: Tensor) -> Tensor:
        """float (N, 3, S, S) to what T5 reads: (N, patches, D)."""
        states = self.vision(pixels, output_hidden_states=True).hidden_states[self._layer]
        projected: Tensor = self.projector(states[:, self._first :])
        return projected

    def forward(
        self, pixels: Tensor, before: Tensor, after: list[Tensor], answer: Tensor
    ) -> Tensor:
        """Logits (N, L, V) of answer tokens (L,), for token ids before and after the image."""
        embed = self.t5.get_input_embeddings()
        images = self.encode_images(pixels)
        rows = [torch.cat([embed(before), x, embed(y)]) for x, y in zip(images, after, strict=True)]
        mask = pad_sequence([torch.ones(len(row), device=pixels.device) for row in rows], True)
        given = torch.cat([answer.new_tensor([self._start]), answer[:-1]])
        output = self.t5(
            inputs_embeds=pad_sequence(rows, True),
            attention_mask=mask,
            decoder_input_ids=given.expand(len(rows), -1),
            use_cache=False,
        )
        logits: Tensor = output.logits
        return logits


def rename(key: str) -> str | None:
    """Rename a key of CLIP-FlanT5 to that of ``ClipT5``; None leaves it out."""
    if key == "embed_tokens.weight" or key.endswith(".position_ids"):
        return None  # a second name of the encoder's; a counter
    if key.startswith(_VISION_KEYS):
        return "vision." + key.removeprefix(_VISION_KEYS)
    if key.startswith("mm_projector."):
        return "projector." + key.removeprefix("mm_projector.")
    return f"t5.{key}"


class VqaScore(DifferentiableModelReward):
    """Geometric mean of the probabilities of "Yes" and the end of the answer, in [0, 1].

    Args:
        checkpoint: weights and configuration, and the tokenizer where it is a folder.
        vision: makes the architecture of the image tower.
        **options: ``device``, ``dtype`` and ``batch_size``; the published weights have 11 billion
            parameters, so use bfloat16.
    """

    def __init__(
        self,
        checkpoint: Checkpoint = DEFAULT,
        *,
        vision: Callable[[], CLIPVisionConfig] = lambda: vision_l14(336),
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.checkpoint = checkpoint
        self.vision = vision()
        self._tokenizer: Any = None
        self.info = RewardInfo(
            name="vqascore",
            variant=f"clip-flant5, {checkpoint}, mean-colour square, PIL bicubic 336",
            range=(0.0, 1.0),
            unit="geometric mean of the answer's token probabilities",
            differentiable=True,
            license="see its card",
        )

    def load(self) -> nn.Module:
        """Build the network and read its weights.

        Raises:
            RewardError: the weights cannot be had or do not fit.
        """
        settings = read_json(self.checkpoint, "config.json")
        tensors = read_sharded(self.checkpoint)
        if not any(key.startswith(_VISION_KEYS) for key in tensors):
            tensors |= self._vision_tensors()
        for key in _SHARED:
            if key not in tensors and "shared.weight" in tensors:
                tensors[key] = tensors["shared.weight"]
        default = torch.get_default_dtype()
        torch.set_default_dtype(self.dtype)  # eleven billion parameters, held once
        try:
            with no_init_weights():
                model = ClipT5(settings, self.vision)
        finally:
            torch.set_default_dtype(default)
        load_strict(model, tensors, rename)
        return model

    def _vision_tensors(self) -> dict[str, Tensor]:
        found = read_tensors(VISION.file(WEIGHTS_FILE))
        stem = "vision_model."
        return {
            _VISION_KEYS + key.removeprefix(stem): value
            for key, value in found.items()
            if key.startswith(stem)
        }

    def pixels(self, images: Tensor) -> Tensor:
        """Preprocess bytes, (N, 3, H, W): mean-colour borders to a square, bicubic."""
        color = (int(CLIP_MEAN[0] * 255), int(CLIP_MEAN[1] * 255), int(CLIP_MEAN[2] * 255))
        squares = resize_short_side(pad_to_square(images, color), self.vision.image_size)
        return normalise(squares, CLIP_MEAN, CLIP_STD)

    def ids(self, text: str) -> Tensor:
        """Token ids of one piece of text, which ends in its own end token: (L,)."""
        if self._tokenizer is None:
            at = self.checkpoint if self.checkpoint.folder else TOKENIZER
            self._tokenizer = load_tokenizer(at)
        ids = self._tokenizer(text, truncation=True, max_length=MAX_TOKENS)["input_ids"]
        return torch.tensor(ids, device=self.device)

    def score_batch(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Score one batch: bytes, (N, 3, H, W), and N prompts to float (N,)."""
        model = self.model
        before, answer = self.ids(BEFORE), self.ids(ANSWER)
        # Not split at "<image>" as the original does: a prompt may contain it.
        after = [self.ids(AFTER.replace("{prompt}", prompt)) for prompt in prompts]
        pixels = self.pixels(images).to(self.device, self.dtype)
        logits = model(pixels, before, after, answer)
        # Beyond the tokenizer's vocabulary there are only paddings, which the original cuts off.
        likely = functional.log_softmax(logits[..., : len(self._tokenizer)].float(), dim=-1)
        return likely.gather(-1, answer.expand(len(prompts), -1)[..., None]).mean((1, 2)).exp()
