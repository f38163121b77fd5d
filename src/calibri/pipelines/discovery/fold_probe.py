"""Find weights whose product with s gives a module's output times s."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from calibri.pipelines.calls import Call
from calibri.pipelines.discovery.replay import places_of
from calibri.pipelines.sites.site import Fold
from calibri.trees import floating


def measured_fold(module: nn.Module, call: Call, index: int | None) -> tuple[Fold, ...]:
    """Try the layers of a module from the last one back, then layers of one name together.

    Doubling is exact in floating point, so a layer that the output is linear in doubles it to the
    last bit, whatever comes after.

    Args:
        module: the module whose output is a site.
        call: one call of it.
        index: which element of its tuple is the site; the others must not change.

    Returns:
        Paths relative to the module, "" for itself; empty when nothing scales the output alone.
    """
    layers = _layers(module, call)
    before = _elements(call.replay(module))
    groups: dict[str, list[str]] = {}
    for path in layers:
        groups.setdefault(path.rpartition(".")[2], []).append(path)
    several = [paths for paths in groups.values() if len(paths) > 1]
    for paths in [*([path] for path in layers), *several]:
        with _doubled(module, paths):
            after = _elements(call.replay(module))
        if _is_doubled(before, after, index or 0):
            return tuple(Fold(path) for path in paths)
    return ()


def _layers(module: nn.Module, call: Call) -> list[str]:
    inner = [path for path, _ in places_of(module, call)]
    own = ["", *dict.fromkeys(reversed(inner))]
    # Experts that this call did not choose are layers all the same.
    own += [path for path, _ in module.named_modules() if path not in own]
    return [path for path in own if list(_own(module, path))]


def _own(module: nn.Module, path: str) -> Iterator[nn.Parameter]:
    return module.get_submodule(path).parameters(recurse=False)


def _is_doubled(before: Sequence[Tensor | None], after: Sequence[Tensor | None], site: int) -> bool:
    return all(
        torch.allclose(new, (2 if position == site else 1) * old, rtol=1e-6, atol=0)
        for position, (old, new) in enumerate(zip(before, after, strict=True))
        if old is not None and new is not None
    )


def _elements(output: object) -> list[Tensor | None]:
    if isinstance(output, Tensor):
        return [output]
    assert isinstance(output, tuple | list)
    return [part if isinstance(part, Tensor) and floating(part) else None for part in output]


@contextmanager
def _doubled(module: nn.Module, paths: Sequence[str]) -> Iterator[None]:
    weights = [parameter for path in paths for parameter in _own(module, path)]
    originals = [weight.detach().clone() for weight in weights]
    try:
        with torch.no_grad():
            for weight in weights:
                weight.mul_(2)
        yield
    finally:
        with torch.no_grad():
            for weight, original in zip(weights, originals, strict=True):
                weight.copy_(original)
