"""Nested tensors of single prompts, joined to those of a batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad


def tensors(value: Any) -> Iterator[Tensor]:
    """Find the tensors in nested tuples, lists and dictionaries."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from tensors(part)
    elif isinstance(value, dict):
        yield from tensors(list(value.values()))


def moved(value: Any, device: torch.device) -> Any:
    """Copy nested tensors to a device; those that are there stay the same."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, tuple | list):
        return type(value)(moved(part, device) for part in value)
    if isinstance(value, dict):
        return {name: moved(part, device) for name, part in value.items()}
    return value


def size(value: Any) -> int:
    """Add up the bytes of nested tensors."""
    return sum(tensor.nbytes for tensor in tensors(value))


def shapes(value: Any) -> list[torch.Size]:
    """List the shapes of nested tensors."""
    return [tensor.shape for tensor in tensors(value)]


def writes(value: Any) -> list[int]:
    """Count writes: a pipeline may have changed the tensors it was given."""
    return [0 if tensor.is_inference() else tensor._version for tensor in tensors(value)]


def alike(one: Any, other: Any) -> bool:
    """Say whether two answers are the same but for rounding."""
    a, b = list(tensors(one)), list(tensors(other))
    return shapes(one) == shapes(other) and all(
        (x.double() - y.double()).abs().max() <= 0.02 * max(1e-6, float(y.double().abs().max()))
        for x, y in zip(a, b, strict=True)
        if x.numel()
    )


def joined(parts: Sequence[Any]) -> Any:
    """Put the answers for single prompts into one, the shorter ones padded behind with zeros."""
    first = parts[0]
    if isinstance(first, Tensor):
        return _padded_together(parts)
    if isinstance(first, list) and len(first) == 1 and batch_axis(first[0]) is None:
        return [entry for part in parts for entry in part]
    if isinstance(first, tuple | list):
        return type(first)(joined(entries) for entries in zip(*parts, strict=True))
    return first


def batch_axis(part: Any) -> int | None:
    """Find the axis of the prompts in what was encoded for one: the first of length 1."""
    shape = tuple(part.shape) if isinstance(part, Tensor) else ()
    return shape.index(1) if 1 in shape else None


def _padded_together(parts: Sequence[Tensor]) -> Tensor:
    axis = batch_axis(parts[0])
    if axis is None:
        return parts[0]
    tokens = axis + 1
    if tokens < parts[0].ndim and len({part.shape[tokens] for part in parts}) > 1:
        longest = max(part.shape[tokens] for part in parts)
        parts = [
            pad(p, (0, 0) * (p.ndim - tokens - 1) + (0, longest - p.shape[tokens])) for p in parts
        ]
    return torch.cat(list(parts), dim=axis)
