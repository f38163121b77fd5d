"""The scales of a calibration as factors of the rows of linear layers, which other tools know."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from calibri.coefficients import Coefficients, scaled_places
from calibri.errors import FuseError
from calibri.pipelines import Fold, Site, sites_of


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
    if reason := coefficients.unfoldable:
        raise FuseError(f"{reason} Use it with calibri.load.")
    scales = coefficients.site_scales(sites_of(transformer))[0].tolist()
    found: dict[str, Tensor] = {}
    for site, column in scaled_places(transformer)[0]:
        scale = scales[column]
        for fold in _folds(site) if scale != 1.0 else ():
            size = _linear(transformer, site, fold).out_features
            factors = found.setdefault(fold.path, torch.ones(size, dtype=torch.float64))
            factors[slice(*fold.rows) if fold.rows else slice(None)] *= scale
    return found


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
