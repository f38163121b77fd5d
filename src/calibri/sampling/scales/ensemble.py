"""The arithmetic of an ensemble: ``F(x, t) = sum_i omega_i * f(x, t, y_i; s_i)`` (spec section 2).

A forward of the pipeline becomes one or more passes over the same rows: in each pass every row has
one member of its branch of guidance. The passes run as one batch or one after the other; what they
return is weighted and added in fp32 either way, so that both give the same result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Arguments of diffusers transformers that have one entry for each row of the batch.
_PER_ROW = frozenset(
    {
        "attention_mask",
        "encoder_attention_mask",
        "encoder_hidden_states",
        "encoder_hidden_states_mask",
        "guidance",
        "hidden_states",
        "img_shapes",
        "pooled_projections",
        "timestep",
        "txt_seq_lens",
    }
)
# Tensors that all rows share.
_SHARED = frozenset({"img_ids", "txt_ids"})


@dataclass(frozen=True)
class Passes:
    """What each row is multiplied by, pass by pass.

    Attributes:
        scales: (passes, rows, sites); of the sites alone.
        weights: (passes, rows); of what the transformer returns.
    """

    scales: Tensor
    weights: Tensor

    def __len__(self) -> int:
        return len(self.weights)

    @classmethod
    def plan(
        cls, scales: Tensor, branches: Sequence[int], layout: Sequence[int], rows: int
    ) -> Passes:
        """Lay out the members over the rows of a forward.

        Args:
            scales: (images, members, sites + 1), output weight last; ``images`` 1 serves any.
            branches: branch of each member.
            layout: branch of each group of rows.
            rows: rows of the forward, ``len(layout)`` groups of images.
        """
        speaking = scales[:, :, -1].ne(0).any(dim=0).tolist()
        members = {b: [m for m, own in enumerate(branches) if own == b] for b in set(layout)}
        # A member without weight is not run: at the start an ensemble costs what the model costs.
        active = {b: [m for m in found if speaking[m]] for b, found in members.items()}
        count = max(1, *map(len, active.values()))
        images = rows // len(layout)
        groups = [_group(scales, members[b], active[b], count, images) for b in layout]
        table = torch.cat(groups, dim=1)
        return cls(table[:, :, :-1], table[:, :, -1])


def _group(
    scales: Tensor, members: list[int], active: list[int], count: int, images: int
) -> Tensor:
    """Rows of one branch: (passes, images, sites + 1)."""
    idle = scales[:, members[:1]].clone()
    idle[:, :, -1] = 0.0
    parts = [scales[:, active], *[idle] * (count - len(active))]
    return torch.cat(parts, dim=1).transpose(0, 1).expand(-1, images, -1)


def can_repeat(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Say whether the rows of a forward can be repeated: every argument is one we know."""
    unknown = (v for name, v in kwargs.items() if name not in _PER_ROW | _SHARED)
    return not args and not any(map(_has_tensors, unknown))


def _has_tensors(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_has_tensors, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_has_tensors, value))
    return isinstance(value, Tensor)


def repeated(kwargs: Mapping[str, Any], count: int, rows: int) -> dict[str, Any]:
    """Repeat the rows of a forward's arguments ``count`` times along the batch axis."""
    return {
        name: _repeated(value, count, rows) if name in _PER_ROW else value
        for name, value in kwargs.items()
    }


def _repeated(value: Any, count: int, rows: int) -> Any:
    if isinstance(value, Tensor):
        # One value for all rows, a timestep, stays one.
        return torch.cat([value] * count) if value.ndim and len(value) == rows else value
    if isinstance(value, list):
        return value * count if len(value) == rows else value
    return value


def split(output: Any, count: int) -> list[Any]:
    """Split what a repeated forward returned into its passes."""
    if isinstance(output, Tensor):
        return list(output.chunk(count))
    if isinstance(output, Mapping):
        parts = {name: split(value, count) for name, value in output.items()}
        return [type(output)(**{n: p[i] for n, p in parts.items()}) for i in range(count)]
    if isinstance(output, tuple):
        columns = [split(value, count) for value in output]
        return [tuple(column[i] for column in columns) for i in range(count)]
    if isinstance(output, list):  # one entry for each row
        rows = len(output) // count
        return [output[i * rows : (i + 1) * rows] for i in range(count)]
    return [output] * count


def combine(outputs: Sequence[Any], weights: Tensor) -> Any:
    """Add what the passes returned, weighted.

    Args:
        outputs: of each pass, alike in structure.
        weights: (passes, rows).
    """
    first = outputs[0]
    if isinstance(first, Tensor):
        return _weighted(outputs, weights) if first.is_floating_point() else first
    if isinstance(first, Mapping):
        names = {name: combine([out[name] for out in outputs], weights) for name in first}
        return type(first)(**names)
    if isinstance(first, tuple):
        return tuple(combine(column, weights) for column in zip(*outputs, strict=True))
    if isinstance(first, list):
        columns = zip(*outputs, strict=True)
        return [combine(column, weights[:, [row]]) for row, column in enumerate(columns)]
    return first


def _weighted(outputs: Sequence[Tensor], weights: Tensor) -> Tensor:
    first = outputs[0]
    # Frames folded into the batch keep their row's weight.
    weights = weights.to(first.device).repeat_interleave(len(first) // weights.shape[1], dim=1)
    shape = (-1, *[1] * (first.ndim - 1))
    total = torch.zeros_like(first, dtype=torch.float32)
    for output, weight in zip(outputs, weights, strict=True):
        total += output.float() * weight.view(shape)
    return total.to(first.dtype)
