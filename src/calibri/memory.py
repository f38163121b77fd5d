"""Too little memory: how it is told from other faults, and how work is cut until it fits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

Item = TypeVar("Item")
Made = TypeVar("Made")

_WORDS = ("not enough memory", "can't allocate memory", "Cannot allocate memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device or the machine has no memory left."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(part in str(error) for part in _WORDS)
    )


class Halving:
    """Cuts work into parts that fit into memory: a size that did not fit is halved for good.

    Args:
        size: items of a part at most.

    Attributes:
        size: the same, after what did not fit.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def run(
        self, items: Sequence[Item], compute: Callable[[Sequence[Item]], Made]
    ) -> Iterator[tuple[Sequence[Item], Made]]:
        """Compute items part by part, in their order.

        Args:
            items: what is computed.
            compute: computes a part.

        Yields:
            Each part and what was made of it.

        Raises:
            RuntimeError: one item alone does not fit; as the allocator raised it.
        """
        done = 0
        while done < len(items):
            part = items[done : done + self.size]
            made = self._try(part, compute)
            if made is not None:
                done += len(part)
                yield part, made[0]

    def _try(
        self, part: Sequence[Item], compute: Callable[[Sequence[Item]], Made]
    ) -> tuple[Made] | None:
        try:
            return (compute(part),)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or len(part) == 1:
                raise
        # Outside the handler, whose traceback holds the tensors that did not fit.
        self.size = len(part) // 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return None
