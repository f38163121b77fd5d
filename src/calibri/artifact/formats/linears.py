"""The scales of a calibration as factors of weights, which other tools know."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from calibri.artifact.apply import scales_to_fold
from calibri.coefficients import Coefficients, scaled_places
from calibri.errors import FuseError
from calibri.pipelines import Fold, Network, Site, networks_of


def linear_scales(coefficients: Coefficients, transformer: nn.Module) -> dict[str, Tensor]:
    """List the linear layers that a calibration scales.

    Args:
        coefficients: of this transformer.
        transformer: its weights may be on the meta device.

    Returns:
        Path of each layer to the factors of its rows, float64 (out_features,); layers that stay as
        they are are left out.

    Raises:
        FuseError: one set of weights cannot hold the coefficients, or a site has no linear layer
            that takes its scale.
        CalibrationError: the coefficients are of another model.
    """
    found: dict[str, Tensor] = {}
    for site, fold, scale in folded_scales(coefficients, transformer):
        size = _linear(transformer, site, fold).out_features
        factors = found.setdefault(fold.path, torch.ones(size, dtype=torch.float64))
        factors[slice(*fold.rows) if fold.rows else slice(None)] *= scale
    return found


def folded_scales(
    coefficients: Coefficients, networks: nn.Module | Sequence[Network], index: int = 0
) -> Iterator[tuple[Site, Fold, float]]:
    """Go through the weights of a transformer that a calibration multiplies.

    Args:
        coefficients: of these networks.
        networks: those of a pipeline, or a bare transformer; weights may be on the meta device.
        index: of the network whose weights are wanted.

    Yields:
        A site, weights that take its scale, and the scale, which is not 1.

    Raises:
        FuseError: one set of weights cannot hold the coefficients, or a site has no weights that
            take its scale.
        CalibrationError: the coefficients are of another model.
    """
    networks = networks_of(networks)
    scales = scales_to_fold(coefficients, networks, "Use it with calibri.load.")[index]
    for site, column in scaled_places(networks)[index]:
        if scales[column] != 1.0:
            for fold in _folds(site):
                yield site, fold, scales[column]


def _folds(site: Site) -> tuple[Fold, ...]:
    if not site.fold:
        raise FuseError(
            f"'{site.name}' has no weights that take its scale: {site.no_fold}. Use the "
            "calibration with calibri.load."
        )
    return site.fold


def _linear(transformer: nn.Module, site: Site, fold: Fold) -> nn.Linear:
    parent, _, name = fold.path.rpartition(".")
    layer = getattr(transformer.get_submodule(parent), name)
    if not isinstance(layer, nn.Linear):
        raise FuseError(
            f"The scale of '{site.name}' goes into '{fold.path}', a {type(layer).__name__}, and "
            "this format knows linear layers only. Save the whole model with `calibri fuse`."
        )
    return layer
