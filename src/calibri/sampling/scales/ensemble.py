"""The sum over an ensemble: ``F(x, t) = sum_i omega_i * f(x, t, y_i; s_i)`` (spec section 2).

A forward of the pipeline becomes one or more passes over the same rows: in each pass every row has
one member of its branch of guidance. The passes run as one batch or one after the other; what they
return is weighted and added in fp32 either way, so that both give the same result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from calibri.coefficients import OUTPUT
from calibri.memory import is_out_of_memory
from calibri.pipelines import Call
from calibri.sampling.scales.layout import RowLayout
from calibri.sampling.scales.site_hooks import SiteHooks, recomputed
from calibri.sampling.scales.wrapped_forward import WrappedForward
from calibri.trees import repeated, split, tensors, weighted_sum

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
        scales: (passes, rows, columns); of the sites, with 1 for the output.
        weights: (passes, rows); of what the transformer returns.
    """

    scales: Tensor
    weights: Tensor

    @classmethod
    def plan(
        cls, scales: Tensor, branches: Sequence[int], layout: Sequence[int], images: int
    ) -> Passes:
        """Give the rows of a forward their members.

        Args:
            scales: (images, members, columns); 1 image serves any.
            branches: branch of each member.
            layout: branch of each group of rows.
            images: rows of a group.
        """
        # Without weight it is not run, unless the gradient with respect to its weight is wanted.
        counts = (scales[:, :, OUTPUT].ne(0).any(dim=0) | scales.requires_grad).tolist()
        members = {b: [m for m, own in enumerate(branches) if own == b] for b in set(layout)}
        # At the start an ensemble costs what the model costs.
        active = {b: [m for m in found if counts[m]] for b, found in members.items()}
        count = max(1, *map(len, active.values()))
        groups = [_group(scales, members[b], active[b], count, images) for b in layout]
        table = torch.cat(groups, dim=1)
        # The weight of a member multiplies what it returns, in fp32, and not its last linear.
        ones = torch.ones_like(table[:, :, OUTPUT:])
        return cls(torch.cat([table[:, :, :OUTPUT], ones], dim=2), table[:, :, OUTPUT])


def _group(
    scales: Tensor, members: list[int], active: list[int], count: int, images: int
) -> Tensor:
    """Rows of one branch: (passes, images, columns)."""
    idle = scales[:, members[:1]].clone()
    idle[:, :, OUTPUT] = 0.0
    parts = [scales[:, active], *[idle] * (count - len(active))]
    return torch.cat(parts, dim=1).transpose(0, 1).expand(-1, images, -1)


class PassRunner:
    """Runs the passes of one transformer: as one batch as long as memory suffices.

    Args:
        hooks: of the transformer.
        packed: whether it works on one sequence without a batch axis.

    Attributes:
        recomputes: whether a pass keeps its arguments alone for a gradient, see ``NetworkHooks``.
    """

    def __init__(self, hooks: SiteHooks, packed: bool) -> None:
        self._hooks = hooks
        self._one_by_one = packed
        self.recomputes = False

    def outputs(self, forward: Callable[..., Any], passes: Passes, call: Call) -> list[Any]:
        """Run every pass and list what they return."""
        if self.recomputes:
            forward = recomputed(self._hooks, forward)
        count, rows = passes.weights.shape
        if count > 1 and not self._one_by_one and can_repeat(call):
            try:
                self._hooks.fill(passes.scales.flatten(0, 1))
                return split(forward(**repeated_rows(call.kwargs, count, rows)), count)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            # What did not fit is not tried again.
            self._one_by_one = True
        outputs = []
        for scales in passes.scales:
            self._hooks.fill(scales)
            outputs.append(forward(*call.args, **call.kwargs))
        return outputs


class MemberSum:
    """Several members of a branch of guidance: a forward becomes their weighted sum.

    Args:
        runner: runs the passes.
        layout: tells rows apart.
        forward: of the transformer; is run through the sum.
        branches: branch of each member.
    """

    def __init__(
        self,
        runner: PassRunner,
        layout: RowLayout,
        forward: WrappedForward,
        branches: Sequence[int],
    ) -> None:
        self._runner = runner
        self._layout = layout
        self._forward = forward
        self._branches = branches
        self._scales = torch.ones(0)

    def use(self, scales: Tensor) -> None:
        """Take the scales of all members."""
        self._scales = scales
        self._forward.run_through(self._sum)

    def before(self, call: Call) -> None:
        """Nothing yet: the scales are set pass by pass."""

    def _sum(
        self, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        call = Call(args, kwargs)
        layout = self._layout.branches(call) if max(self._branches) else (0,)
        images = self._layout.images(call, self._scales.shape[0], len(layout))
        passes = Passes.plan(self._scales, self._branches, layout, images)
        return weighted_sum(self._runner.outputs(forward, passes, call), passes.weights)


def can_repeat(call: Call) -> bool:
    """Say whether the rows of a forward can be repeated: every argument is one we know."""
    unknown = [v for name, v in call.kwargs.items() if name not in _PER_ROW | _SHARED]
    return not call.args and not list(tensors(unknown))


def repeated_rows(kwargs: Mapping[str, Any], count: int, rows: int) -> dict[str, Any]:
    """Repeat the rows of a forward's arguments ``count`` times along the batch axis."""
    return {
        name: repeated(value, count, rows) if name in _PER_ROW else value
        for name, value in kwargs.items()
    }
