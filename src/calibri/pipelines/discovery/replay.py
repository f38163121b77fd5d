"""Replay one call of a module with some inner outputs scaled."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from calibri.pipelines.calls import Call

# One output of one module: its path inside the probed module, and the element of the tuple that
# it returns (None when it returns a tensor).
Place = tuple[str, int | None]
Scales = Mapping[Place, float]


@contextmanager
def scaled_outputs(module: nn.Module, scales: Scales) -> Iterator[None]:
    """Multiply outputs of inner modules while the context is open."""
    paths = {path for path, _ in scales}
    handles = [
        module.get_submodule(path).register_forward_hook(_scaling(path, scales)) for path in paths
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _scaling(path: str, scales: Scales) -> Callable[[nn.Module, Any, Any], Any]:
    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        if isinstance(output, Tensor):
            return output * scales[path, None]
        parts = [
            part * scales[path, index] if (path, index) in scales else part
            for index, part in enumerate(output)
        ]
        return type(output)(parts)

    return hook


def places_of(module: nn.Module, call: Call) -> list[Place]:
    """List the outputs of inner modules in the order in which they were complete.

    A module that is called more than once takes the place of its last call.
    """
    order: dict[Place, None] = {}

    def record(path: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(inner: nn.Module, args: Any, output: Any) -> None:
            for place in _outputs(path, output):
                order.pop(place, None)
                order[place] = None

        return hook

    handles = [m.register_forward_hook(record(p)) for p, m in module.named_modules() if p]
    try:
        call.replay(module)
    finally:
        for handle in handles:
            handle.remove()
    return list(order)


def _outputs(path: str, output: Any) -> list[Place]:
    if isinstance(output, Tensor):
        return [(path, None)] if output.is_floating_point() else []
    if not isinstance(output, tuple | list) or hasattr(output, "_fields"):
        return []
    return [
        (path, index)
        for index, part in enumerate(output)
        if isinstance(part, Tensor) and part.is_floating_point()
    ]


def calls_of(module: nn.Module, paths: list[str], run: Callable[[], Any]) -> dict[str, Call]:
    """Run something and catch the first call of each inner module that is called."""
    calls: dict[str, Call] = {}

    def catch(path: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(inner: nn.Module, args: Any, kwargs: Any) -> None:
            calls.setdefault(path, Call(args, kwargs))

        return hook

    inner = [(path, module.get_submodule(path)) for path in paths]
    handles = [m.register_forward_pre_hook(catch(p), with_kwargs=True) for p, m in inner]
    try:
        with torch.no_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
    return calls
