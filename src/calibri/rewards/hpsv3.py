"""HPSv3, a human preference score, on the current transformers (Ma et al. 2025).

Method and constants: the official package and its checkpoint; only weights are fetched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from math import ceil, floor, sqrt
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Qwen2VLConfig

from calibri.errors import RewardError
from calibri.rewards.hpsv3_network import HPSv3Network, published_config, rename
from calibri.rewards.hpsv3_prompt import IMAGE_TOKEN, REWARD_TOKEN, render
from calibri.rewards.images import CLIP_MEAN, CLIP_STD, normalise
from calibri.rewards.pretrained import load_tokenizer
from calibri.rewards.resizing import resize
from calibri.rewards.reward import DifferentiableModelReward, RewardInfo
from calibri.rewards.weights import Checkpoint, load_strict, read_tensors

CHECKPOINT = Checkpoint("MizzenAI/HPSv3")
TOKENIZER = Checkpoint("Qwen/Qwen2-VL-7B-Instruct")
WEIGHTS = "HPSv3.safetensors"

_PATCH, _MERGE, _FRAMES = 14, 2, 2
_FACTOR = _PATCH * _MERGE
_PIXELS = 256 * _FACTOR**2
_MAX_ASPECT = 200


def target_size(height: int, width: int) -> tuple[int, int]:
    """Height and width the model sees: multiples of 28 near 200704 pixels, same aspect.

    The order of the floating-point operations is part of the definition: 768 x 768 becomes
    420 x 420, because 768 / beta / 28 is 15.999..., while 512 x 512 becomes 448 x 448.

    Raises:
        RewardError: one side is more than 200 times the other.
    """
    if max(height, width) > _MAX_ASPECT * min(height, width):
        raise RewardError(
            f"HPSv3 cannot score an image of {height} x {width} pixels: one side may be at most "
            f"{_MAX_ASPECT} times the other. Use another image size."
        )
    rounded = [max(_FACTOR, round(side / _FACTOR) * _FACTOR) for side in (height, width)]
    area = rounded[0] * rounded[1]
    if area > _PIXELS:
        beta = sqrt(height * width / _PIXELS)
        rounded = [floor(side / beta / _FACTOR) * _FACTOR for side in (height, width)]
    elif area < _PIXELS:
        beta = sqrt(_PIXELS / (height * width))
        rounded = [ceil(side * beta / _FACTOR) * _FACTOR for side in (height, width)]
    return rounded[0], rounded[1]


def pixel_values(images: Tensor) -> Tensor:
    """Resize bytes, (N, 3, H, W), once to their target size and normalise them to float32."""
    resized = resize(images, target_size(*images.shape[-2:]))
    return normalise(resized, CLIP_MEAN, CLIP_STD)


def patches(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Cut images into Qwen2-VL's patches, 2 x 2 neighbours together, the frame doubled.

    Args:
        pixels: float (N, 3, H, W), sides multiples of 28.

    Returns:
        (N * patches, 1176) and the grids (N, 3): frames, rows, columns.
    """
    count, channels, height, width = pixels.shape
    rows, columns = height // _PATCH, width // _PATCH
    cut = pixels.view(
        count, channels, rows // _MERGE, _MERGE, _PATCH, columns // _MERGE, _MERGE, _PATCH
    ).permute(0, 2, 5, 3, 6, 1, 4, 7)
    doubled = cut.unsqueeze(6).expand(*cut.shape[:6], _FRAMES, _PATCH, _PATCH)
    grids = torch.tensor([[1, rows, columns]], device=pixels.device).expand(count, 3)
    return doubled.reshape(count * rows * columns, -1), grids


class HPSv3Reward(DifferentiableModelReward):
    """Human preference score v3: the mean of its predicted distribution, raw and unbounded.

    Args:
        checkpoint: holds ``HPSv3.safetensors``; a folder holds the files of Qwen2-VL's tokenizer
            too, which otherwise come from their own repository.
        device: where the network runs.
        dtype: of the backbone; the head stays in float32. bfloat16 is usual on a GPU.
        batch_size: images per forward.
        config: sizes of the backbone for a vocabulary of so many tokens.
    """

    def __init__(
        self,
        checkpoint: Checkpoint = CHECKPOINT,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        batch_size: int = 8,
        config: Callable[[int], Qwen2VLConfig] = published_config,
    ) -> None:
        super().__init__(device=device, dtype=dtype, batch_size=batch_size)
        self.checkpoint = checkpoint
        self.config = config
        self.info = RewardInfo(
            name="hpsv3",
            variant=f"{checkpoint}/positions-1d/pil-bicubic",
            unit="HPSv3 mean (raw)",
            differentiable=True,
            license="see its card",
        )

    def load(self) -> nn.Module:
        """Build the network with the checkpoint's vocabulary and read its weights."""
        tensors = read_tensors(self.checkpoint.file(WEIGHTS))
        network = HPSv3Network(self._sizes(tensors), self.dtype)
        load_strict(network, tensors, rename)
        return network

    def _sizes(self, tensors: dict[str, Tensor]) -> Qwen2VLConfig:
        # Training added one token and cut the unused rows of the embedding, so its length says
        # whether this tokenizer is the one it was trained with.
        embedding = [v for k, v in tensors.items() if k.endswith("embed_tokens.weight")]
        rows = len(embedding[0]) if embedding else 0
        if rows != len(self.tokenizer):
            raise RewardError(
                f"The checkpoint '{self.checkpoint}' knows {rows} tokens, the tokenizer "
                f"{len(self.tokenizer)}. Use the tokenizer of {TOKENIZER.repo_id}."
            )
        config = self.config(rows)
        config.image_token_id = self.tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        return config

    @cached_property
    def tokenizer(self) -> Any:
        """Qwen2-VL's tokenizer with the reward token added."""
        tokenizer = load_tokenizer(self.checkpoint if self.checkpoint.folder else TOKENIZER)
        tokenizer.add_special_tokens({"additional_special_tokens": [REWARD_TOKEN]})
        return tokenizer

    def tokens(self, prompt: str, image_tokens: int) -> Tensor:
        """Tokens of the conversation about one image, (L,), the last one ``<|Reward|>``.

        Raises:
            RewardError: the conversation does not hold the reward token exactly once.
        """
        text = render(prompt, image_tokens, self.tokenizer.get_added_vocab())
        ids = torch.tensor(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        for token, wanted in ((REWARD_TOKEN, 1), (IMAGE_TOKEN, image_tokens)):
            found = int((ids == self.tokenizer.convert_tokens_to_ids(token)).sum())
            if found != wanted:
                raise RewardError(
                    f"HPSv3 found {found} tokens {token} instead of {wanted} for the prompt "
                    f"{prompt[:80]!r}. Use the tokenizer of {TOKENIZER.repo_id}."
                )
        return ids

    def score_batch(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Bytes, (N, 3, H, W), and N prompts to the predicted means (N,)."""
        network = self.model
        flat, grids = patches(pixel_values(images).to(self.device, self.dtype))
        image_tokens = int(grids[0].prod()) // _MERGE**2
        rows = [self.tokens(prompt, image_tokens) for prompt in prompts]
        lengths = torch.tensor([len(row) for row in rows], device=self.device)
        ids = nn.utils.rnn.pad_sequence(rows, batch_first=True).to(self.device)
        means: Tensor = network(ids, lengths, flat, grids)[:, 0]
        return means
