"""The oracle of the tests of scales: a plain model whose weights were multiplied by hand."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor, nn

from calibri.pipelines.sites.find import find_sites
from tests.tiny import forward

_SHARED = ("img_ids", "txt_ids")
# The linear that ends each branch of the blocks of SD3 and FLUX.
_LAST_LINEAR = {
    "attn[0]": "attn.to_out.0",
    "attn[1]": "attn.to_add_out",
    "attn2": "attn2.to_out.0",
    "ff": "ff.net.2",
    "ff_context": "ff_context.net.2",
    "proj_out": "proj_out",
}


def linear_of(name: str) -> str:
    """Path of the linear that ends the branch of a site."""
    block, _, layer = name.rpartition(".")
    return f"{block}.{_LAST_LINEAR[layer]}"


def multiplied(model: nn.Module, scales: list[float]) -> nn.Module:
    """Copy a model and multiply its weights: of every site, then of the output."""
    model = copy.deepcopy(model)
    paths = [linear_of(site.name) for site in find_sites(model)]
    with torch.no_grad():
        for path, scale in zip([*paths, "proj_out"], scales, strict=True):
            for parameter in model.get_submodule(path).parameters():
                parameter.mul_(scale)
    return model


def row_of(inputs: dict[str, Tensor], row: int) -> dict[str, Tensor]:
    """The arguments of one row of a forward."""
    return {n: v if n in _SHARED else v[row : row + 1] for n, v in inputs.items()}


def interpolated(scales: Tensor, place: float) -> Tensor:
    """numpy's piecewise linear function of the relative timestep, entry by entry.

    Args:
        scales: (images, members, knots, columns).
        place: 0 for the image, 1 for the noise.
    """
    knots = np.linspace(0, 1, scales.shape[2])
    values = np.apply_along_axis(lambda y: np.interp(place, knots, y), 2, scales.double().numpy())
    return torch.from_numpy(values)


def summed_by_hand(
    model: nn.Module,
    inputs: dict[str, Tensor],
    scales: Tensor,
    branches: tuple[int, ...],
    layout: tuple[int, ...],
) -> Tensor:
    """Every member of every row's branch alone, on multiplied weights, added up.

    Args:
        model: without hooks, in double precision.
        inputs: of a forward.
        scales: (images, members, columns), 1 image for any.
        branches: branch of each member.
        layout: branch of each group of rows.
    """
    images = len(inputs["hidden_states"]) // len(layout)
    rows = []
    for row in range(images * len(layout)):
        image = row % images if len(scales) > 1 else 0
        own = [m for m, branch in enumerate(branches) if branch == layout[row // images]]
        outputs = [
            forward(multiplied(model, scales[image, member].tolist()), row_of(inputs, row))
            for member in own
        ]
        rows.append(torch.stack(outputs).sum(dim=0))
    return torch.cat(rows)
