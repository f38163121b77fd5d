"""What HPSv3 is told about an image: its fixed instruction around the user's prompt."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection
from pathlib import Path

from calibri.errors import RewardError

REWARD_TOKEN = "<|Reward|>"
IMAGE_TOKEN = "<|image_pad|>"

_PATH = Path(__file__).parent / "data" / "hpsv3_prompt.txt"
_SHA256 = "f6ee57479d4e9eee76b49c00dc962e1e696a5a2b3cc32cebd9b1fa76fe27502c"
_PLACEHOLDER = "{text_prompt}"
# The chat template of Qwen2-VL for one user turn of an image and a text. What would follow the
# reward token (rest of the instruction, end of turn, assistant header) cannot change its hidden
# state under causal attention and is left out.
_BEFORE_IMAGE = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
)
_AFTER_IMAGE = "<|vision_end|>"


def instruction(path: Path = _PATH) -> str:
    """Return the instruction HPSv3 was trained with, with a placeholder for the prompt.

    Args:
        path: the file that holds it.

    Raises:
        RewardError: the file is not the one the model was trained with, byte for byte.
    """
    text = path.read_text(encoding="utf-8")
    if hashlib.sha256(text.encode()).hexdigest() != _SHA256:
        raise RewardError(f"'{path}' was changed; HPSv3 needs its exact text. Reinstall calibri.")
    return text


def escape(prompt: str, literals: Collection[str]) -> str:
    """Break the special-token literals in a user's prompt with a space after their first character.

    A prompt with ``<|Reward|>`` would add a second place to read the score from, one with
    ``<|image_pad|>`` a place without an image.
    """
    longest_first = sorted(literals, key=len, reverse=True)
    pattern = re.compile("|".join(re.escape(literal) for literal in longest_first))
    return pattern.sub(lambda found: f"{found[0][0]} {found[0][1:]}", prompt)


def render(prompt: str, image_tokens: int, literals: Collection[str]) -> str:
    """Write the conversation up to and including ``<|Reward|>``.

    Args:
        prompt: the user's prompt, any text.
        image_tokens: places for the image's features.
        literals: the tokenizer's special tokens, broken up where the prompt contains them.
    """
    told, _ = instruction().split(REWARD_TOKEN)
    told = told.replace(_PLACEHOLDER, escape(prompt, literals))
    return _BEFORE_IMAGE + IMAGE_TOKEN * image_tokens + _AFTER_IMAGE + told + REWARD_TOKEN
