"""How sure a search must be of what it returns, and how many prompts that takes."""

from __future__ import annotations

import math

ERROR_RATE = 0.05


def fewest_prompts(error_rate: float = ERROR_RATE) -> int:
    """Fewest prompts on which ``select`` can choose a checkpoint at all.

    It compares a checkpoint with what signs drawn at random for its prompts give. The clearest
    checkpoint is better on every prompt, and of n prompts random signs are all alike, and as clear,
    with a chance of 2^-n: with too few prompts that is more often than ``error_rate``.
    """
    return math.floor(-math.log2(error_rate)) + 1
