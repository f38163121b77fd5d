"""Find the layers whose scaling scales a model's output (see ``discover``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from calibri.errors import UnsupportedModelError
from calibri.pipelines.calls import Call
from calibri.pipelines.discovery.fold_probe import measured_fold
from calibri.pipelines.discovery.replay import Place, calls_of, places_of, scaled_outputs
from calibri.pipelines.sites.site import Site
from calibri.trees import floating


def discover_outputs(transformer: nn.Module, call: Call, blocks: Sequence[str]) -> list[Site]:
    """Walk back from the end of the model to the layers that double its outputs when doubled.

    Args:
        transformer: the model.
        call: one call of it.
        blocks: paths of its blocks, which are not outputs.

    Returns:
        One site for each modality, in the order of the model.

    Raises:
        UnsupportedModelError: an output is scaled by no single layer.
    """
    expected = floating(call.replay(transformer))
    missing = set(range(len(expected)))
    found: list[Site] = []
    for place in _weighted(transformer, call, blocks):
        hit = _scaled_by(transformer, call, place, expected)
        if hit & missing:
            found.append(_site(transformer, call, place))
            missing -= hit
        if not missing:
            return found[::-1]
    raise UnsupportedModelError(
        f"No layer of {type(transformer).__name__} scales its whole output, so an output weight "
        "has nothing to act on. Models that add their input to their output, such as parts of a "
        "U-Net, cannot be calibrated."
    )


def _weighted(transformer: nn.Module, call: Call, blocks: Sequence[str]) -> list[Place]:
    inside = tuple(f"{block}." for block in blocks)
    layers = {
        path
        for path, module in transformer.named_modules()
        if not list(module.children()) and list(module.parameters())
    }
    return [
        place
        for place in reversed(places_of(transformer, call))
        if place[0] in layers and not place[0].startswith(inside)
    ]


def _scaled_by(
    transformer: nn.Module, call: Call, place: Place, expected: Sequence[Tensor]
) -> set[int]:
    """List the outputs that double with a place; none when it changes another one otherwise."""
    with scaled_outputs(transformer, {place: 2.0}):
        doubled = floating(call.replay(transformer))
    pairs = list(enumerate(zip(doubled, expected, strict=True)))
    # Doubling is exact in floating point, through any linear map that follows.
    hit = {i for i, (new, old) in pairs if torch.allclose(new, 2 * old, rtol=1e-6, atol=0)}
    same = all(torch.equal(new, old) for i, (new, old) in pairs if i not in hit)
    return hit if same else set()


def _site(transformer: nn.Module, call: Call, place: Place) -> Site:
    path, index = place
    own = calls_of(transformer, [path], lambda: call.replay(transformer))[path]
    fold = measured_fold(transformer.get_submodule(path), own, index)
    targets = tuple(replace(t, path=f"{path}.{t.path}".rstrip(".")) for t in fold)
    return Site(path, index, "", "output", "output", targets)
