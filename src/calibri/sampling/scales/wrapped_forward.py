"""A transformer's forward, run through a function while there is one."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import nn

# Given the transformer's own forward and the arguments.
Around = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]


class WrappedForward:
    """Lets a function run the forward of a transformer as often as it needs.

    Hooks cannot run a forward twice, nor survive one that has too little memory.

    Args:
        transformer: stays as it is until there is a function.
    """

    def __init__(self, transformer: nn.Module) -> None:
        self._transformer = transformer
        self._around: Around | None = None
        self._ours: Callable[..., Any] | None = None
        self._restore: Callable[[], None] = lambda: None

    def run_through(self, around: Around | None) -> None:
        """Run the following forwards through a function, or as they are."""
        self._around = around
        if around is not None and self._ours is None:
            self._wrap()

    def remove(self) -> None:
        """Give the transformer the forward it had."""
        # What was wrapped around ours since then keeps calling it; without a function it passes on.
        self._around = None
        if self._ours is not None and vars(self._transformer).get("forward") is self._ours:
            self._restore()
        self._ours = None

    def _wrap(self) -> None:
        original = self._transformer.forward

        @functools.wraps(original)
        def forward(*args: Any, **kwargs: Any) -> Any:
            if self._around is None:
                return original(*args, **kwargs)
            return self._around(original, args, kwargs)

        before = vars(self._transformer).get("forward")
        self._restore = functools.partial(_restore, self._transformer, before)
        self._ours = self._transformer.forward = forward


def _restore(transformer: nn.Module, forward: Any) -> None:
    """Give a module the forward it had: its class's own, or one that another library had set."""
    if forward is None:
        del transformer.forward
    else:
        transformer.forward = forward
