"""What a call of a pipeline sends to its transformer."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch


class _StepDoneError(Exception):
    """Raised once the transformer was called as often as one step takes."""


def sent(pipe: Any, calls: int, run: Callable[[], Any]) -> list[dict[str, Any]]:
    """The arguments of the first calls of the transformer, by name; stops ``run`` there."""
    seen: list[dict[str, Any]] = []
    signature = inspect.signature(type(pipe.transformer).forward)

    def before(module: Any, args: Any, kwargs: Any) -> None:
        seen.append(dict(signature.bind(module, *args, **kwargs).arguments))
        del seen[-1]["self"]
        if len(seen) == calls:
            raise _StepDoneError

    hook = pipe.transformer.register_forward_pre_hook(before, with_kwargs=True)
    try:
        with pytest.raises(_StepDoneError):
            run()
    finally:
        hook.remove()
    return seen


def differing(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> list[str]:
    """The names of arguments that are not the same bit for bit."""
    found = []
    for one, other in zip(ours, theirs, strict=True):
        found += [name for name in one.keys() ^ other.keys()]
        found += [name for name in one.keys() & other.keys() if not _same(one[name], other[name])]
    return found


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    return bool(one == other)
