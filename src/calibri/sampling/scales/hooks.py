"""Scale the sites of one transformer by forward hooks, while their scales change."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from calibri.errors import GuidanceError, UnsupportedModelError
from calibri.pipelines import (
    Call,
    Network,
    Site,
    batch_size,
    find_output_sites,
    find_sites,
)
from calibri.sampling.scales.ensemble import Passes, can_repeat, combine, repeated, split

# Which branch each consecutive group of rows in a forward belongs to: (1, 0) is the batched
# [unconditional, conditional] of classifier-free guidance, (0,) a conditional-only forward.
Layout = tuple[int, ...]
LayoutResolver = Callable[[dict[str, Any]], Layout]


class SiteHook:
    """Multiplies one output of a module; holds its own view so a compiled graph has no index."""

    def __init__(self, site: Site) -> None:
        self.index = site.index
        self.name = site.name
        self.axis = site.batch_axis
        self.scale = torch.ones(1)

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Scale what the module returns."""
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


class NetworkHooks:
    """Hooks on every site of one transformer, set to the identity until told otherwise.

    Args:
        network: a transformer whose blocks are known.
        resolver: tells the layout of a forward from its arguments; needed only when branches of
            guidance have different scales and the network runs both.

    Raises:
        UnsupportedModelError: no sites are known.
    """

    def __init__(self, network: Network, resolver: LayoutResolver | None = None) -> None:
        self.transformer = transformer = network.transformer
        self._network = network
        self.sites = find_sites(transformer)
        self.outputs = find_output_sites(transformer)
        self._resolver = resolver
        self._layout_known = None if network.branch is None else (network.branch,)
        self._hooks = [SiteHook(site) for site in (*self.sites, *self.outputs)]
        self._packed = any(site.batch_axis is None for site in self.sites)
        self._scales = torch.ones(1, 1, len(self.sites) + 1)
        # Branch of each member while the scales are those of an ensemble.
        self._members: tuple[int, ...] | None = None
        # Scales at every knot while they change over the trajectory.
        self._trajectory: Tensor | None = None
        self._forward: Callable[..., Any] | None = None
        self._one_by_one = False
        self._table = torch.ones(len(self._hooks), 1)
        self._bind()
        self._start = transformer.register_forward_pre_hook(self._before, with_kwargs=True)
        self._hooked: dict[str, nn.Module] = {}
        self._handles: list[RemovableHandle] = []
        self._install()

    def _install(self) -> None:
        for handle in self._handles:
            handle.remove()
        places = [site.path for site in (*self.sites, *self.outputs)]
        self._hooked = {path: self.transformer.get_submodule(path) for path in places}
        self._handles = [
            self._hooked[path].register_forward_hook(hook)
            for path, hook in zip(places, self._hooks, strict=True)
        ]

    def _follow(self) -> None:
        # A LoRA layer takes the place of the linear it wraps, also long after the hooks were set:
        # what must be scaled is the sum of both.
        current = self.transformer.get_submodule
        if any(current(path) is not module for path, module in self._hooked.items()):
            self._install()

    def set(self, scales: Tensor, branches: Sequence[int] | None) -> None:
        """Set the scales of the following forwards, see ``Scaler.set``; of these sites alone."""
        scales = scales.to(_device(self.transformer), torch.float32)
        self._trajectory = scales if scales.ndim == 4 else None
        self._scales = scales if scales.ndim == 3 else scales[:, :, 0]
        branches = tuple(branches or range(scales.shape[1]))
        self._members = branches if len(branches) > len(set(branches)) else None
        if self._members is not None:
            self._wrap()
        # With one branch there is nothing to tell apart at each forward.
        elif scales.shape[1] == 1:
            self._fill(self._scales[:, 0])

    def remove(self) -> None:
        """Take every hook off; the transformer is as it was before."""
        for handle in (self._start, *self._handles):
            handle.remove()
        self._handles = []
        self._members = None
        # What was wrapped around ours since then keeps calling it; without members it passes on.
        if self._forward is not None and vars(self.transformer).get("forward") is self._forward:
            self._unwrap()
        self._forward = None

    def _wrap(self) -> None:
        """Put the sum over members around the transformer's forward.

        Hooks cannot run a forward twice, nor survive one that has too little memory.
        """
        if self._forward is not None:
            return
        original = self.transformer.forward

        @functools.wraps(original)
        def forward(*args: Any, **kwargs: Any) -> Any:
            if self._members is None:
                return original(*args, **kwargs)
            rows = 1 if self._packed else batch_size(Call(args, kwargs))
            layout = self._layout(args, kwargs) if max(self._members) else (0,)
            self._check_rows(rows, len(layout))
            passes = Passes.plan(self._scales, self._members, layout, rows)
            return combine(self._outputs(original, passes, args, kwargs), passes.weights)

        before = vars(self.transformer).get("forward")
        self._unwrap = functools.partial(_restore, self.transformer, before)
        self._forward = forward
        self.transformer.forward = forward

    def _outputs(
        self, forward: Callable[..., Any], passes: Passes, args: Any, kwargs: Any
    ) -> list[Any]:
        """Run every pass and list what they return."""
        count, rows = passes.weights.shape
        known = not self._packed and can_repeat(args, kwargs)
        if count > 1 and known and not self._one_by_one:
            try:
                self._fill_sites(passes.scales.flatten(0, 1))
                return split(forward(**repeated(kwargs, count, rows)), count)
            except torch.OutOfMemoryError:
                self._one_by_one = True
        outputs = []
        for scales in passes.scales:
            self._fill_sites(scales)
            outputs.append(forward(*args, **kwargs))
        return outputs

    def _fill_sites(self, rows: Tensor) -> None:
        # The weight of a member multiplies what it returns, in fp32, and not its last linear.
        self._fill(torch.cat([rows, torch.ones_like(rows[:, :1])], dim=1))

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not torch.compiler.is_compiling():
            self._follow()
        if self._trajectory is not None:
            self._advance(self._trajectory, self._network.trajectory.position(args, kwargs))
        if self._members is not None:
            return None
        rows = 1 if self._packed else batch_size(Call(args, kwargs))
        if self._scales.shape[1] == 1:
            return self._check_rows(rows, 1)
        layout = self._layout(args, kwargs)
        self._check_rows(rows, len(layout))
        images = rows // len(layout)
        self._fill(torch.cat([self._scales[:, branch].expand(images, -1) for branch in layout]))

    def _advance(self, trajectory: Tensor, position: Tensor) -> None:
        """Take the scales of this step: linear in the timestep between the two nearest knots."""
        knots = trajectory.shape[2]
        place = position.to(trajectory.device) * (knots - 1)
        near = 1 - (place - torch.arange(knots, device=trajectory.device)).abs()
        self._scales = (trajectory * near.clamp(min=0)[:, None]).sum(dim=2)
        if self._members is None and self._scales.shape[1] == 1:
            self._fill(self._scales[:, 0])

    def _layout(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Layout:
        if self._layout_known is not None:
            return self._layout_known
        if self._resolver is None:
            raise GuidanceError(
                "The scales differ between the branches of guidance, but nothing tells which rows "
                "are conditional. Load the calibration onto the pipeline, not the transformer."
            )
        return self._resolver({str(place): value for place, value in enumerate(args)} | kwargs)

    def _check_rows(self, rows: int, branches: int) -> None:
        images = self._scales.shape[0]
        if images != 1 and rows != images * branches:
            raise GuidanceError(
                f"The transformer got a batch of {rows} rows for {images} images in {branches} "
                "branches. Set the scales of every image of the batch, one set per branch."
            )

    def _fill(self, rows: Tensor) -> None:
        rows = torch.cat([rows, *[rows[:, -1:]] * (len(self.outputs) - 1)], dim=1)
        alike = rows.shape[0] == self._table.shape[1] and rows.device == self._table.device
        # What a gradient will flow through is never overwritten.
        if alike and not (rows.requires_grad or self._table.requires_grad):
            self._table.copy_(rows.T)
            return
        self._table = rows.T.contiguous()
        self._bind()

    def _bind(self) -> None:
        for row, hook in zip(self._table, self._hooks, strict=True):
            hook.scale = row


def _restore(transformer: nn.Module, forward: Any) -> None:
    """Give a module the forward it had: its class's own, or one that another library had set."""
    if forward is None:
        del transformer.forward
    else:
        transformer.forward = forward


def _device(transformer: nn.Module) -> torch.device:
    device = next(transformer.parameters()).device
    # Weights of a sequentially offloaded model rest on the meta device between forwards.
    return torch.device("cpu") if device.type == "meta" else device


def refuse_compiled(transformer: nn.Module) -> None:
    """Raise UnsupportedModelError for a compiled model: torch ignores hooks added to it."""
    compiled = (m for m in transformer.modules() if m._compiled_call_impl is not None)
    if hasattr(transformer, "_orig_mod") or next(compiled, None) is not None:
        raise UnsupportedModelError(
            "This transformer is already compiled, and torch ignores hooks added after that. "
            "Load the calibration first, then compile; or fuse the calibration into the weights."
        )
