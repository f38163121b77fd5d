"""Memory of a gradient through the sampler, counted without weights.

What autograd keeps of a forward is seen by its hooks for saved tensors, on the meta device too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from calibri.config import RunConfig
from calibri.pipelines import Geometry, sites_of
from calibri.planning.flops import meta_inputs, shapes_explained
from calibri.results import Record
from calibri.sampling import Scaler


class GradientMemory(Record):
    """Activations of one image with its gradient, in GB; the weights come on top.

    Attributes:
        all_steps: everything is kept until the backward.
        one_step: one evaluation of the transformer at a time, or one block of the decoder.
        one_block: one block at a time.
    """

    all_steps: float
    one_step: float
    one_block: float


@dataclass(frozen=True)
class Kept:
    """Bytes that a forward keeps for its backward.

    Attributes:
        whole: all of it.
        inputs: arguments of the forward.
        by_block: when each block keeps its arguments alone, and the largest block in addition.
    """

    whole: int
    inputs: int
    by_block: int


def count_gradient(
    geometry: Geometry, networks: Mapping[str, nn.Module], config: RunConfig, branches: int
) -> GradientMemory:
    """Count what the gradient of one image keeps, without the network of its reward.

    Args:
        geometry: of the pipeline.
        networks: on the meta device, by role; cast to the precision of the run, and frozen.
        config: of the run.
        branches: of guidance.

    Raises:
        UnsupportedModelError: the transformer's inputs are not known here.
        ConfigError: it makes no images of that size.
    """
    dtype = getattr(torch, config.dtype)
    # Weights that ask for gradients would have what they are multiplied with kept.
    transformer, vae = (
        networks[role].to(dtype).requires_grad_(False) for role in ("transformer", "vae")
    )
    with shapes_explained(transformer):
        inputs, latents = meta_inputs(geometry, networks, config)
        forward = kept_by_transformer(transformer, {k: _cast(v, dtype) for k, v in inputs.items()})
        decode = kept_by_decoder(vae, latents.to(dtype))
    steps = config.search.last_steps or config.sampling.num_inference_steps
    return gradient_memory(steps, branches, forward, decode)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    floating = isinstance(value, Tensor) and value.is_floating_point()
    return value.to(dtype) if floating else value


def gradient_memory(steps: int, branches: int, forward: Kept, decode: Kept) -> GradientMemory:
    """Put together what a sampling keeps.

    Args:
        steps: of the sampler.
        branches: of guidance, which go through the transformer together or one after the other.
        forward: of one branch.
        decode: of the decoder.
    """
    arguments = steps * branches * forward.inputs
    return GradientMemory(
        all_steps=(steps * branches * forward.whole + decode.whole) / 1e9,
        one_step=(arguments + max(branches * forward.whole, decode.by_block)) / 1e9,
        one_block=(arguments + max(branches * forward.by_block, decode.by_block)) / 1e9,
    )


def kept_by_transformer(transformer: nn.Module, inputs: Mapping[str, Any]) -> Kept:
    """Count what a forward keeps for the gradient with respect to the scales of its sites.

    Args:
        transformer: on the meta device, in the precision of a run.
        inputs: of one image and branch, on the meta device.
    """
    sites = sites_of(transformer)
    blocks = {transformer.get_submodule(site.block) for site in sites if site.block}
    scaler = Scaler(transformer)
    try:
        scaler.set(torch.ones(1, 1, len(sites) + 1, requires_grad=True))
        return _kept(transformer, blocks, lambda: transformer(**inputs), inputs.values())
    finally:
        scaler.remove()


def kept_by_decoder(vae: Any, latents: Tensor) -> Kept:
    """Count what decoding keeps for the gradient with respect to latents on the meta device."""
    found = (getattr(vae.decoder, "mid_block", None), *getattr(vae.decoder, "up_blocks", ()))
    # A decoder that diffusers cannot run block by block is kept whole.
    able = getattr(vae, "_supports_gradient_checkpointing", False)
    blocks = {block for block in found if able and block is not None}
    latents = latents.detach().requires_grad_()
    return _kept(vae, blocks, lambda: vae.decode(latents), [latents])


def _kept(
    module: nn.Module, blocks: set[nn.Module], run: Callable[[], Any], inputs: Iterable[Any]
) -> Kept:
    counted = _Counter(module, blocks)
    with counted.watching(), torch.device("meta"):
        result = run()
    del result
    parts = counted.blocks.values()
    apart = sum(part.kept for part in parts)
    by_block = counted.kept - apart + sum(part.inputs for part in parts)
    return Kept(
        whole=counted.kept,
        inputs=_bytes(inputs),
        by_block=by_block + max((part.kept for part in parts), default=0),
    )


@dataclass
class _Part:
    inputs: int = 0
    kept: int = 0


class _Counter:
    """Counts what is kept while a module runs, and how much of it in which of its blocks."""

    def __init__(self, module: nn.Module, blocks: set[nn.Module]) -> None:
        # A weight is there anyway; its storage tells it from the rest.
        self._seen = {_storage(weight) for weight in module.parameters()}
        self._held: list[Tensor] = []  # so that no storage takes the place of one that was seen
        self.blocks = {block: _Part() for block in blocks}
        self._inside: _Part | None = None
        self.kept = 0

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Count in it."""
        handles = [
            handle
            for block in self.blocks
            for handle in (
                block.register_forward_pre_hook(self._enter, with_kwargs=True),
                block.register_forward_hook(self._leave),
            )
        ]
        hooks = torch.autograd.graph.saved_tensors_hooks(self._keep, lambda kept: kept)
        try:
            with torch.enable_grad(), _FusedAttention(), hooks:
                yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._inside = self.blocks[block]
        self._inside.inputs += _bytes((*args, *kwargs.values()))

    def _leave(self, block: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._inside = None

    def _keep(self, tensor: Tensor) -> Tensor:
        storage = _storage(tensor)
        if storage not in self._seen:
            self._seen.add(storage)
            self._held.append(tensor)
            size = tensor.untyped_storage().nbytes()
            self.kept += size
            if self._inside is not None:
                self._inside.kept += size
        return tensor


class _FusedAttention(TorchFunctionMode):
    """Attention as a GPU runs it: its matrix of weights is never kept."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is functional.scaled_dot_product_attention:
            return _attend(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _attend(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Any:
    return _Attention.apply(query, key, value)  # type: ignore[no-untyped-call]


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = query.new_empty(*query.shape[:-1], value.shape[-1])
        sums = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, output, sums)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> None:
        raise NotImplementedError


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _bytes(values: Iterable[Any]) -> int:
    tensors = [value for value in values if isinstance(value, Tensor)]
    return sum(tensor.nbytes for tensor in tensors)
