"""One forward of a module: its arguments, and how many rows they have."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Call:
    """Arguments of one forward of a module."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def replay(self, module: nn.Module) -> Any:
        """Run the module on these arguments; what it changes in place is a copy."""
        with torch.no_grad():
            args, kwargs = copy.copy(self.args), dict(self.kwargs)
            return module(*args, **kwargs)

    @property
    def batch_size(self) -> int:
        """Rows of the forward: diffusers calls the latents hidden_states, or x."""
        named = [self.kwargs[name] for name in ("hidden_states", "x") if name in self.kwargs]
        for value in (*named, *self.args, *self.kwargs.values()):
            if isinstance(value, list | tuple) or (isinstance(value, Tensor) and value.ndim):
                return len(value)
        return 1
