"""The walk of discovery over one block (see ``discover``)."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from calibri.pipelines.calls import Call
from calibri.pipelines.discovery.findings import BlockFinding, Finding
from calibri.pipelines.discovery.fold_probe import measured_fold
from calibri.pipelines.discovery.labels import layer_label, stream_label
from calibri.pipelines.discovery.replay import Place, calls_of, places_of, scaled_outputs
from calibri.pipelines.sites.site import Site
from calibri.trees import floating, mapped

# Relative to the influence: fp32 rounding of a residual sum reaches about 1e-5 when the branch is
# a hundredth of the stream; the nearest non-linear operation, a norm, is off by about 1.
_LINEAR = 1e-3
# Relative to the output: a smaller influence cannot be told from rounding.
_INFLUENCE = 1e-6


@dataclass(frozen=True)
class _Accepted:
    place: Place
    influence: float
    nonlinearity: float


class BlockProbe:
    """Find the branches of one kind of block.

    Args:
        transformer: the model.
        calls: one call of each block.
        paths: blocks of this kind that were called; the first is probed for all of them.
        rows: images in the batch of the calls.
    """

    def __init__(
        self, transformer: nn.Module, calls: Mapping[str, Call], paths: Sequence[str], rows: int
    ) -> None:
        self._block = transformer.get_submodule(paths[0])
        self._call = calls[paths[0]]
        self._paths = paths
        self._rows = rows
        # Branches found so far, all switched off, and the output of the block without them.
        self._off: dict[Place, float] = {}
        self.accepted: list[_Accepted] = []
        self._on = self._run({})
        for place in reversed(places_of(self._block, self._call)):
            # What is inside a branch that is off has no influence; the identity test would tell.
            if not any(place[0].startswith(f"{path}.") for path, i in self._off if i is None):
                self._consider(place)
        self.accepted.reverse()

    def _run(self, scales: Mapping[Place, float], call: Call | None = None) -> list[Tensor]:
        with scaled_outputs(self._block, {**self._off, **scales}):
            return floating((call or self._call).replay(self._block))

    def _consider(self, place: Place) -> None:
        on, off = self._on, self._run({place: 0.0})
        size = max(map(_size, on), default=0.0)
        moved = [_size(a - b) for a, b in zip(on, off, strict=True)]
        influence = max(moved, default=0.0)
        if not influence > _INFLUENCE * size:
            return
        double = self._run({place: 2.0})
        bend = max(_size(c - 2 * a + b) for a, b, c in zip(on, off, double, strict=True))
        if bend <= _LINEAR * influence and self._carries(place, off, moved):
            self._off[place] = 0.0
            self._on = off
            self.accepted.append(_Accepted(place, influence / size, bend / influence))

    def _carries(self, place: Place, off: list[Tensor], moved: list[float]) -> bool:
        """Say whether every output that the place moves still depends on the input without it."""
        other = self._run({place: 0.0}, self._disturbed({part.shape for part in off}))
        changes = [_size(a - b) for a, b in zip(off, other, strict=True)]
        limit = _INFLUENCE * max(map(_size, off))
        affected = [change for change, move in zip(changes, moved, strict=True) if move > limit]
        return all(change > limit for change in affected)

    def _disturbed(self, shapes: set[torch.Size]) -> Call:
        generator = torch.Generator().manual_seed(0)

        def disturb(tensor: Tensor) -> Tensor:
            if not tensor.is_floating_point() or tensor.shape not in shapes:
                return tensor
            noise = torch.randn(tensor.shape, generator=generator).to(tensor)
            return tensor + noise * tensor.std()

        return Call(mapped(disturb, self._call.args), mapped(disturb, self._call.kwargs))

    @cached_property
    def is_identity(self) -> bool:
        """Whether the block returns its inputs when every branch is off."""
        return all(self._origin(part) for part in self._on)

    def block_finding(self) -> BlockFinding:
        """Describe the block."""
        return BlockFinding(
            block=self._paths[0],
            block_class=type(self._block).__name__,
            members=len(self._paths),
            is_identity=self.is_identity,
        )

    def findings(self) -> list[Finding]:
        """Describe the branches, of every block of this kind."""
        here = [self._finding(accepted) for accepted in self.accepted]
        return [_moved(finding, path) for path in self._paths for finding in here]

    def _finding(self, accepted: _Accepted) -> Finding:
        """Measure one branch; paths are relative to the block."""
        inner, index = accepted.place
        on, off = self._run({accepted.place: 1.0}), self._on
        moved = [(a - b, b) for a, b in zip(on, off, strict=True) if _size(a - b) > 0]
        call = calls_of(self._block, [inner], lambda: self._call.replay(self._block))[inner]
        module = self._block.get_submodule(inner)
        output = self._output_at(accepted.place)
        fold = measured_fold(module, call, index)
        site = Site(
            path=inner,
            index=index,
            block="",
            layer=layer_label(inner),
            stream=stream_label([self._origin(b) for _, b in moved]),
            fold=tuple(replace(t, path=f"{inner}.{t.path}".rstrip(".")) for t in fold),
            no_fold="" if fold else "no weights were found that scale this output alone",
            gated=not _alike(output, [delta for delta, _ in moved]),
            batch_axis=self._batch_axis(output),
        )
        return Finding(site=site, influence=accepted.influence, nonlinearity=accepted.nonlinearity)

    def _output_at(self, place: Place) -> Tensor:
        """Record the output of a branch while the others are off."""
        recorded: list[Tensor] = []

        def record(module: nn.Module, args: object, output: Any) -> None:
            recorded.append(output if place[1] is None else output[place[1]])

        handle = self._block.get_submodule(place[0]).register_forward_hook(record)
        try:
            self._run({place: 1.0})
        finally:
            handle.remove()
        return recorded[-1]

    def _batch_axis(self, output: Tensor) -> int | None:
        sizes = list(output.shape)
        if self._rows in sizes:
            return sizes.index(self._rows)
        # Frames or patches folded into the batch.
        return 0 if sizes[0] % self._rows == 0 else None

    def _origin(self, part: Tensor) -> list[str]:
        """Name the inputs that an output equals: one, or two in one sequence."""
        inputs = self._inputs()
        for name, tensor in inputs:
            if tensor.shape == part.shape and torch.equal(tensor, part):
                return [name]
        for first, head in inputs:
            for second, tail in inputs:
                if _joins(head, tail, part):
                    return [first, second]
        return []

    def _inputs(self) -> list[tuple[str, Tensor]]:
        bound = inspect.signature(self._block.forward).bind(*self._call.args, **self._call.kwargs)
        return [(name, t) for name, value in bound.arguments.items() for t in floating(value)]


def _moved(finding: Finding, block: str) -> Finding:
    site = finding.site
    fold = tuple(replace(target, path=f"{block}.{target.path}") for target in site.fold)
    moved = replace(site, path=f"{block}.{site.path}", block=block, fold=fold)
    return finding.model_copy(update={"site": moved})


def _size(tensor: Tensor) -> float:
    return float(tensor.abs().max()) if tensor.numel() else 0.0


def _joins(head: Tensor, tail: Tensor, part: Tensor) -> bool:
    if not head.ndim == tail.ndim == part.ndim >= 2 or head is tail:
        return False
    if not (head.shape[1] + tail.shape[1] == part.shape[1] and head.shape[2:] == part.shape[2:]):
        return False
    return torch.equal(torch.cat([head, tail], dim=1), part)


def _alike(output: Tensor, deltas: Sequence[Tensor]) -> bool:
    """Say whether a branch enters the stream as it is, in whatever layout."""
    total = sum(float(delta.double().sum()) for delta in deltas)
    energy = sum(float(delta.double().square().sum()) for delta in deltas)
    own = float(output.double().square().sum())
    close = abs(energy - own) <= 1e-4 * own
    return close and abs(total - float(output.double().sum())) <= 1e-3 * own**0.5
