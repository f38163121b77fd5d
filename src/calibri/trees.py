"""Trees: tensors in nested tuples, lists and mappings, such as modules take and return.

The one place that walks them. ``parts_of`` and ``rebuilt`` say what a container is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad


def parts_of(value: Any) -> list[Any] | None:
    """List what a container holds; None for what is no container, a tensor too."""
    if isinstance(value, Mapping):
        return list(value.values())
    return list(value) if isinstance(value, list | tuple) else None


def rebuilt(like: Any, parts: Sequence[Any]) -> Any:
    """Put parts, as many as ``parts_of`` gave, into a container of the same kind."""
    if isinstance(like, Mapping):
        named = dict(zip(like, parts, strict=True))
        return named if type(like) is dict else type(like)(**named)  # diffusers' outputs
    return type(like)(*parts) if hasattr(like, "_fields") else type(like)(parts)


def tensors(value: Any) -> Iterator[Tensor]:
    """Find the tensors of a tree, in their order."""
    if isinstance(value, Tensor):
        yield value
    for part in parts_of(value) or ():
        yield from tensors(part)


def floating(value: Any) -> list[Tensor]:
    """List the floating point tensors of a tree."""
    return [tensor for tensor in tensors(value) if tensor.is_floating_point()]


def mapped(change: Callable[..., Tensor], first: Any, *others: Any) -> Any:
    """Apply a function to every tensor of a tree, together with those in its place in others.

    Args:
        change: given one tensor of each tree.
        first: what is no tensor in it stays.
        others: alike in structure.
    """
    if isinstance(first, Tensor):
        return change(first, *others)
    parts = parts_of(first)
    if parts is None:
        return first
    columns = zip(parts, *map(parts_of, others), strict=True)
    return rebuilt(first, [mapped(change, *column) for column in columns])


def moved(value: Any, device: torch.device) -> Any:
    """Copy a tree to a device; tensors that are there stay the same."""
    return mapped(lambda tensor: tensor.to(device), value)


def size(value: Any) -> int:
    """Add up the bytes of a tree."""
    return sum(tensor.nbytes for tensor in tensors(value))


def shapes(value: Any) -> list[torch.Size]:
    """List the shapes of the tensors of a tree."""
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
    if parts_of(first) is None:
        return first
    return rebuilt(first, [joined(entries) for entries in zip(*map(parts_of, parts), strict=True)])


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


def repeated(value: Any, count: int, rows: int) -> Any:
    """Repeat the rows of a tensor, or of a list with one entry for each, along the batch axis.

    Args:
        value: what has no ``rows`` rows, such as one timestep for all of them, stays.
        count: how often.
        rows: of the batch.
    """
    if isinstance(value, Tensor):
        return torch.cat([value] * count) if value.ndim and len(value) == rows else value
    return value * count if isinstance(value, list) and len(value) == rows else value


def split(output: Any, count: int) -> list[Any]:
    """Split what was returned for repeated rows; a list has one entry for each row."""
    if isinstance(output, Tensor):
        return list(output.chunk(count))
    if isinstance(output, list):
        rows = len(output) // count
        return [output[i * rows : (i + 1) * rows] for i in range(count)]
    parts = parts_of(output)
    if parts is None:
        return [output] * count
    columns = [split(part, count) for part in parts]
    return [rebuilt(output, [column[i] for column in columns]) for i in range(count)]


def weighted_sum(trees: Sequence[Any], weights: Tensor) -> Any:
    """Add trees with weights of their own for each row, in fp32; a list has an entry for each row.

    Args:
        trees: alike in structure; what is no floating point tensor is that of the first.
        weights: (trees, rows).
    """
    first = trees[0]
    if isinstance(first, Tensor):
        return _weighted_sum(trees, weights) if first.is_floating_point() else first
    if isinstance(first, list):
        columns = zip(*trees, strict=True)
        return [weighted_sum(column, weights[:, [row]]) for row, column in enumerate(columns)]
    if parts_of(first) is None:
        return first
    parts = zip(*map(parts_of, trees), strict=True)
    return rebuilt(first, [weighted_sum(part, weights) for part in parts])


def _weighted_sum(parts: Sequence[Tensor], weights: Tensor) -> Tensor:
    first = parts[0]
    # Frames folded into the batch keep their row's weight.
    weights = weights.to(first.device).repeat_interleave(len(first) // weights.shape[1], dim=1)
    shape = (-1, *[1] * (first.ndim - 1))
    total = torch.zeros_like(first, dtype=torch.float32)
    for part, weight in zip(parts, weights, strict=True):
        total += part.float() * weight.view(shape)
    return total.to(first.dtype)
