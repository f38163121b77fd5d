"""Every transformer class of the installed diffusers, and what Calibri can do with it."""

from __future__ import annotations

import sys
from typing import Literal

import torch
from torch import nn

from calibri.config import GRANULARITIES, Granularity
from calibri.errors import UnsupportedModelError
from calibri.pipelines.classes import transformer_classes
from calibri.pipelines.families.lookup import block_family, family_of
from calibri.pipelines.granularity import parameter_names
from calibri.pipelines.sites.find import find_sites
from calibri.results import Record
from calibri.signatures import typed

Status = Literal["table", "discover", "refused"]
Folding = Literal["all", "some", "none"]


class ModelStatus(Record):
    """One transformer class.

    Attributes:
        name: the class in diffusers.
        status: ``"table"`` when its sites are known, ``"discover"`` when they must be measured
            (``calibri inspect --discover``), ``"refused"`` when there is nothing to calibrate.
        reason: why it is refused, or why its default model was not counted.
        counts: granularity to number of scalars of the model that the class builds by default.
        gated: how many of its sites the model itself multiplies by a gate.
        folds: whether all sites, some, or none fold into weights.
        guidance: how its pipelines run the branches of classifier-free guidance, where known.
    """

    name: str
    status: Status
    reason: str = ""
    counts: dict[Granularity, int] | None = None
    gated: int | None = None
    folds: Folding | None = None
    guidance: str | None = None


@typed
def models(names: list[str] | None = None) -> list[ModelStatus]:
    """Describe transformer classes of the installed diffusers; no weights are made.

    Args:
        names: classes to describe; None for all.

    Raises:
        UnsupportedModelError: diffusers has no transformer class of a name.
    """
    classes = transformer_classes()
    unknown = sorted(set(names or ()) - set(classes))
    if unknown:
        raise UnsupportedModelError(
            f"The installed diffusers has no transformer class {unknown[0]}. "
            "`calibri models` lists the classes it has."
        )
    return [_status(name, classes[name]) for name in names or sorted(classes)]


def _status(name: str, model_class: type[nn.Module]) -> ModelStatus:
    row = family_of(name)
    if row.refused:
        return ModelStatus(name=name, status="refused", reason=row.refused)
    guidance = row.guidance.layout or None
    if not _uses_known_blocks(model_class):
        return ModelStatus(name=name, status="discover", guidance=guidance)
    try:
        with torch.device("meta"):
            model = model_class()
        sites = find_sites(model)
    # A class whose arguments have no usable defaults fails in a way of its own.
    except Exception as error:
        reason = f"its constructor has no complete defaults ({type(error).__name__})"
        return ModelStatus(name=name, status="table", reason=reason, guidance=guidance)
    foldable = sum(bool(site.fold) for site in sites)
    return ModelStatus(
        name=name,
        status="table",
        counts={g: len(parameter_names(sites, g)) for g in GRANULARITIES},
        gated=sum(site.gated for site in sites),
        folds="all" if foldable == len(sites) else "some" if foldable else "none",
        guidance=guidance,
    )


def _uses_known_blocks(model_class: type[nn.Module]) -> bool:
    """Say whether the module that defines a class has a known block in its names."""
    return any(map(block_family, vars(sys.modules[model_class.__module__])))
