"""The bucket of prompts of each generation (spec section 3)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from calibri.errors import PromptError
from calibri.prompts.files import Prompt
from calibri.seeds import derive_seed


class Buckets:
    """Buckets of a search, one after another and of any sizes.

    Every prompt is drawn once before any is drawn twice, and so on, whatever the sizes; no bucket
    has a prompt twice. What is drawn depends on the seed and on the sizes drawn so far alone.

    Args:
        prompts: the training prompts.
        seed: the seed of the run.
    """

    def __init__(self, prompts: Sequence[Prompt], seed: int) -> None:
        self._prompts = prompts
        self._seed = seed
        self._drawn = 0
        self._epoch = 0
        self._left = self._permutation()

    def draw(self, size: int) -> tuple[Prompt, ...]:
        """Draw the prompts of the next generation.

        Raises:
            PromptError: there are fewer prompts than ``size``.
            ValueError: ``size`` is below 1.
        """
        if size < 1:
            raise ValueError(f"Need size >= 1; got {size}.")
        if size > len(self._prompts):
            raise PromptError(
                f"A bucket of {size} prompts cannot be drawn from {len(self._prompts)}. Give more "
                "training prompts or a smaller bucket."
            )
        start = self._start(size)
        taken = self._left[start : start + size]
        self._left = self._left[:start] + self._left[start + size :]
        if len(taken) < size:
            taken += self._next_epoch(taken, size - len(taken))
        self._drawn += 1
        return tuple(self._prompts[index] for index in taken)

    def _start(self, size: int) -> int:
        """Place of the next bucket among the prompts that are left of this epoch.

        As long as the first epoch lasts, bucket g of size s begins at place g s of its order, so
        that runs journalled long ago draw what they drew. What growing buckets so leave out comes
        at the end of the epoch.
        """
        before = len(self._prompts) - len(self._left)
        start = max(0, self._drawn * size - before)
        return start if self._epoch == 0 and start + size <= len(self._left) else 0

    def _next_epoch(self, held: list[int], count: int) -> list[int]:
        """Begin an epoch with prompts that the bucket, which the last one began, does not hold."""
        self._epoch += 1
        order, inside = self._permutation(), set(held)
        first = [index for index in order if index not in inside][:count]
        inside = set(first)
        self._left = [index for index in order if index not in inside]
        return first

    def _permutation(self) -> list[int]:
        rng = np.random.default_rng(derive_seed(self._seed, "bucket", self._epoch))
        return [int(index) for index in rng.permutation(len(self._prompts))]
