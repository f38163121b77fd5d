"""Fold final scales into the weights of the branches' last linears, and take them out again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from diffusers.models.normalization import RMSNorm as DiffusersRMSNorm
from torch import Tensor, nn

from calibri.coefficients import Place, scaled_places
from calibri.errors import FuseError
from calibri.pipelines import Fold, Network, Site, networks_of


@dataclass(frozen=True)
class FoldStep:
    """One weight that takes one scale.

    Attributes:
        site: name of what is scaled.
        parameter: name of the weight in its transformer.
        rows: first and last-but-one row to multiply; None for all.
        scale: the factor.
    """

    site: str
    parameter: str
    rows: tuple[int, int] | None
    scale: float

    @torch.no_grad()
    def multiply(self, weight: Tensor) -> None:
        """Multiply a weight in place."""
        rows = self.part(weight)
        # Double precision, one rounding: the closest the weight's dtype has to the product.
        rows.copy_(rows.double() * self.scale)

    def part(self, weight: Tensor) -> Tensor:
        """Look at what of a weight is multiplied."""
        return weight if self.rows is None else weight[slice(*self.rows)]


def fold_steps(
    networks: nn.Module | Sequence[Network], scales: Sequence[float] | Sequence[Sequence[float]]
) -> list[list[FoldStep]]:
    """List what folding multiplies; the weights themselves may be on the meta device.

    Args:
        networks: see ``Fused``.
        scales: see ``Fused``.

    Returns:
        For each network its steps, without those that change nothing.

    Raises:
        FuseError: a target cannot take a scale.
    """
    networks = networks_of(networks)
    rows = np.broadcast_to(np.asarray(scales), (len(networks), np.shape(scales)[-1]))
    return [
        _steps(network.transformer, places, row.tolist())
        for network, places, row in zip(networks, scaled_places(networks), rows, strict=True)
    ]


class Fused:
    """Scales folded into weights, and the way back.

    Args:
        networks: the model to change in place, or those of a pipeline.
        scales: a row of a table of scales, (sites + 1,), output last (``scaled_places``); or one
            for each network, each for the sites of all of them.
        keep_originals: keep a copy of the changed tensors so that ``undo`` is exact.

    Raises:
        FuseError: a target cannot take a scale (LoRA layers, packed or offloaded weights, weights
            that stand in several places).
    """

    def __init__(
        self,
        networks: nn.Module | Sequence[Network],
        scales: Sequence[float] | Sequence[Sequence[float]],
        *,
        keep_originals: bool = True,
    ) -> None:
        networks = networks_of(networks)
        targets = []  # all of them before the first weight is changed
        for network, steps in zip(networks, fold_steps(networks, scales), strict=True):
            found = _targets(network.transformer, steps)
            _refuse_tied(network.transformer, found)
            targets += found
        self._keep = keep_originals
        self._originals = [
            (step.part(weight), step.part(weight).detach().to("cpu", copy=True))
            for step, weight in targets
            if keep_originals
        ]
        for step, weight in targets:
            step.multiply(weight)

    @torch.no_grad()
    def undo(self) -> None:
        """Restore the original weights bit for bit.

        Raises:
            FuseError: no copies were kept.
        """
        if not self._keep:
            raise FuseError(
                "This model was fused without keeping the original weights, so they cannot be "
                "restored. Load the model again."
            )
        for parameter, original in reversed(self._originals):
            parameter.copy_(original)
        self._originals = []


def _steps(
    transformer: nn.Module, places: Sequence[Place], scales: Sequence[float]
) -> list[FoldStep]:
    _refuse_group_offload(transformer)
    return [
        FoldStep(place.site.name, name, fold.rows, scales[place.column])
        for place in places
        if scales[place.column] != 1.0
        for fold in _folds_of(place.site)
        for name in _parameters(transformer, fold)
    ]


def _targets(transformer: nn.Module, steps: Sequence[FoldStep]) -> list[tuple[FoldStep, Tensor]]:
    """Find the weights of steps, each of which must belong to one place."""
    targets: list[tuple[FoldStep, Tensor]] = [
        (step, transformer.get_parameter(step.parameter)) for step in steps
    ]
    names: dict[int, str] = {}
    for step, weight in targets:
        _refuse_packed(step.parameter, weight)
        if names.setdefault(id(weight), step.parameter) != step.parameter:
            raise FuseError(
                f"Cannot fold scales into '{step.parameter}': it is the same weight as "
                f"'{names[id(weight)]}', and would take the scales of both. Keep the calibration "
                "loaded without fusing."
            )
    return targets


def _refuse_tied(transformer: nn.Module, targets: Sequence[tuple[FoldStep, Tensor]]) -> None:
    """Refuse a weight that stands in several places: folding would scale all that it does."""
    names: dict[int, list[str]] = {}
    for name, parameter in transformer.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    for step, weight in targets:
        others = [name for name in names.get(id(weight), []) if name != step.parameter]
        if others:
            raise FuseError(
                f"'{step.parameter}' of the site '{step.site}' is also '{others[0]}', one weight "
                "in several places, so it cannot take the scale of one of them. Use the "
                "calibration without fusing, or give each place a weight of its own."
            )


def _refuse_group_offload(transformer: nn.Module) -> None:
    # It may onload copies taken when it was enabled, with streams or a disk, and undo the fold.
    registries = (getattr(module, "_diffusers_hook", None) for module in transformer.modules())
    if any(registry and registry.get_hook("group_offloading") for registry in registries):
        raise FuseError(
            "Cannot fold scales into a model under group offloading, which restores its own copies "
            "of the weights. Fuse before enabling offload, or keep the calibration loaded."
        )


# Layers whose output is linear in their own parameters, and no subclass of them: a LoRA layer is
# more than its weight.
_LINEAR: tuple[type[nn.Module], ...] = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.LayerNorm,
    nn.RMSNorm,
    DiffusersRMSNorm,
)


def _folds_of(site: Site) -> tuple[Fold, ...]:
    if not site.fold:
        raise FuseError(
            f"The scale of '{site.name}' cannot be folded into weights: "
            f"{site.no_fold or 'no weights of its block are known to take it'}. Keep the "
            "calibration loaded without fusing."
        )
    return site.fold


def _parameters(transformer: nn.Module, fold: Fold) -> list[str]:
    parent, _, name = fold.path.rpartition(".")
    owner = transformer.get_submodule(parent)
    target = getattr(owner, name)
    if isinstance(target, nn.Module) and type(target) not in _LINEAR:
        raise FuseError(
            f"Cannot fold a scale into '{fold.path}': it is a {type(target).__module__}."
            f"{type(target).__name__}, not a plain linear layer. Fuse LoRA adapters first "
            "(pipe.fuse_lora(), then pipe.unload_lora_weights()), fuse before quantising, or keep "
            "the calibration loaded without fusing."
        )
    if not isinstance(target, nn.Module):
        return [fold.path]
    own = [f"{fold.path}.{name}" for name, _ in target.named_parameters(recurse=False)]
    if not own:
        raise FuseError(
            f"Cannot fold a scale into '{fold.path}': it has no weights in this model. Keep the "
            "calibration loaded without fusing."
        )
    return own


def _refuse_packed(path: str, parameter: Tensor) -> None:
    # 8-bit floats would round the scale away; other tensor classes pack their values.
    kind = type(parameter.data)
    plain = kind is Tensor and parameter.is_floating_point() and parameter.itemsize > 1
    if not plain or parameter.is_meta:
        raise FuseError(
            f"Cannot fold a scale into '{path}': its weight is a {kind.__name__} of "
            f"{parameter.dtype} on {parameter.device}. Fuse before quantising or enabling offload, "
            "or keep the calibration loaded without fusing."
        )
