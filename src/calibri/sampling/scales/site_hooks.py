"""Hooks on what is scaled inside one transformer: they multiply, and know nothing of why."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.hooks import RemovableHandle

from calibri.coefficients import Place
from calibri.errors import GuidanceError
from calibri.pipelines import Site
from calibri.sampling.scales.uncopied import Uncopied


class SiteHook(Uncopied):
    """Multiplies one output of a module; holds its own view so a compiled graph has no index.

    Attributes:
        scale: (1,) for every row, or (rows,).
        is_inside: whether it is in a block, not the output of the transformer.
        has_run: set by every run, also from within a compiled graph; whoever asks clears it.
    """

    def __init__(self, site: Site) -> None:
        self.index = site.index
        self.name = site.name
        self.axis = site.batch_axis
        self.is_inside = bool(site.block)
        self.scale = torch.ones(1)
        self.has_run = False

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Scale what the module returns."""
        self.has_run = True  # written and never read here: a graph would be tied to its value
        if self.index is None:
            return self._scaled(output)
        parts = list(output)
        parts[self.index] = self._scaled(parts[self.index])
        return type(output)(parts)

    def _scaled(self, output: Tensor) -> Tensor:
        scale = self.scale.to(output.device)
        if scale.shape[0] > 1:
            scale = self._per_row(scale, output)
        # fp32 scale, product cast back: bf16 scalars would be off by up to 0.4%.
        return (output * scale).to(output.dtype)

    def _per_row(self, scale: Tensor, output: Tensor) -> Tensor:
        rows = scale.shape[0]
        if self.axis is None:
            raise GuidanceError(
                f"'{self.name}' works on one packed sequence without a batch, so it cannot have "
                f"{rows} scales at once. Set the scales of one image and one branch at a time."
            )
        size = output.shape[self.axis]
        if size != rows:
            if size % rows:
                raise GuidanceError(
                    f"Scales were set for {rows} rows, but '{self.name}' got a batch of {size}. "
                    "Set one scale for all rows, or one per row."
                )
            # Frames folded into the batch keep their row's scale.
            scale = scale.repeat_interleave(size // rows)
        return scale.view([-1 if axis == self.axis else 1 for axis in range(output.ndim)])


class SiteHooks:
    """A hook on every site and output of one transformer, the identity until filled.

    Args:
        transformer: what is hooked.
        places: what of it is scaled.

    Attributes:
        hooks: one for each place; their scales are rows of one tensor.
    """

    def __init__(self, transformer: nn.Module, places: Sequence[Place]) -> None:
        self.hooks = tuple(SiteHook(place.site) for place in places)
        self._transformer = transformer
        self._paths = [place.site.path for place in places]
        self._columns = torch.tensor([place.column for place in places])
        self._table = torch.ones(len(places), 1)
        self._modules: dict[str, nn.Module] = {}
        self._handles: list[RemovableHandle] = []
        self._bind()
        self._install()

    def fill(self, rows: Tensor) -> None:
        """Set the scales of the forwards to come.

        Args:
            rows: (rows of the batch, columns), or (1, columns) for every row; see ``Place``.
        """
        self._columns = self._columns.to(rows.device)
        table = rows.index_select(1, self._columns).T
        alike = table.shape == self._table.shape and table.device == self._table.device
        # What a gradient will flow through is never overwritten.
        if alike and not (table.requires_grad or self._table.requires_grad):
            self._table.copy_(table)
            return
        self.table = table.contiguous()

    @property
    def table(self) -> Tensor:
        """Scales of the hooks, (hooks, rows); what is set here is held, not copied."""
        return self._table

    @table.setter
    def table(self, table: Tensor) -> None:
        self._table = table
        self._bind()

    def follow(self) -> None:
        """Hook what has taken the place of a hooked module.

        A LoRA layer takes that of the linear it wraps, also long after the hooks were set: what
        must be scaled is the sum of both.
        """
        current = self._transformer.get_submodule
        if any(current(path) is not module for path, module in self._modules.items()):
            self._install()

    def skipped(self) -> list[str]:
        """Name the sites inside of blocks whose hooks have not run since this was last asked."""
        skipped = [h.name for h in self.hooks if h.is_inside and not h.has_run]
        for hook in self.hooks:
            hook.has_run = False
        return skipped

    def remove(self) -> None:
        """Take every hook off."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _install(self) -> None:
        self.remove()
        self._modules = {path: self._transformer.get_submodule(path) for path in self._paths}
        self._handles = [
            self._modules[path].register_forward_hook(hook)
            for path, hook in zip(self._paths, self.hooks, strict=True)
        ]

    def _bind(self) -> None:
        for row, hook in zip(self._table, self.hooks, strict=True):
            hook.scale = row


def recomputed(hooks: SiteHooks, forward: Callable[..., Any]) -> Callable[..., Any]:
    """Have a forward keep its arguments alone for a gradient, and run once more in the backward."""

    def run_now(*args: Any, **kwargs: Any) -> Any:
        table = hooks.table

        def run(*args: Any, **kwargs: Any) -> Any:
            # In the backward the hooks have the scales of another step or branch.
            hooks.table = table
            return forward(*args, **kwargs)

        return checkpoint(run, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    return run_now
