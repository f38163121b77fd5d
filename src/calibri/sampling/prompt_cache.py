"""Where encoded prompts are kept, so that each is encoded once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch

from calibri.trees import moved, size

# A thousand prompts of a T5-XXL in bfloat16 (512 x 4096) fill it.
MAX_BYTES = 4 * 2**30

_CPU = torch.device("cpu")


class PromptCache:
    """Encoded prompts on the CPU; the least recently used is forgotten.

    Args:
        max_bytes: bound on the size of all tensors together.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._known: OrderedDict[Any, Any] = OrderedDict()

    def __contains__(self, key: Any) -> bool:
        return key in self._known

    @property
    def full(self) -> bool:
        """Whether one more would make it forget another, judging by the mean size so far."""
        return self._bytes * (len(self._known) + 1) > self._max_bytes * max(1, len(self._known))

    def get(self, key: Any, make: Callable[[], Any]) -> Any:
        """Return what is known under a key, made now if it was not."""
        if key not in self._known:
            value = moved(make(), _CPU)
            self._known[key] = value
            self._bytes += size(value)
            while self._bytes > self._max_bytes and len(self._known) > 1:
                self._bytes -= size(self._known.popitem(last=False)[1])
        self._known.move_to_end(key)
        return self._known[key]
