"""Find the sites of a transformer."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

from torch import nn

from calibri.errors import UnsupportedModelError
from calibri.pipelines.families.family import Family
from calibri.pipelines.families.lookup import auxiliary_containers, block_family, family_of
from calibri.pipelines.families.notation import NO_FOLD, Branch, parse_row
from calibri.pipelines.sites.folds import fold_of
from calibri.pipelines.sites.site import Site

_Assigned = tuple[tuple[Site, ...], tuple[Site, ...]]
_assigned: weakref.WeakKeyDictionary[nn.Module, _Assigned] = weakref.WeakKeyDictionary()


def assign_sites(transformer: nn.Module, sites: Sequence[Site], outputs: Sequence[Site]) -> None:
    """Give one transformer its sites: found by discovery, read from a file, or chosen by hand.

    Args:
        transformer: the model that ``find_sites`` and everything built on it will be asked about.
        sites: residual-branch sites, in the order of their coefficients.
        outputs: the linears whose scaling scales the model's output.

    Raises:
        UnsupportedModelError: a path does not exist in this model.
    """
    paths = {path for path, _ in transformer.named_modules()}
    missing = [site.path for site in (*sites, *outputs) if site.path not in paths]
    if missing or not sites:
        raise UnsupportedModelError(
            f"These sites do not belong to this {type(transformer).__name__}: it has no module "
            f"{missing[:3]}. Discover its sites again."
            if missing
            else "A transformer needs at least one site. Discover its sites again."
        )
    _assigned[transformer] = (tuple(sites), tuple(outputs))


def find_sites(transformer: nn.Module, *, auxiliary: bool = False) -> tuple[Site, ...]:
    """List every residual-branch site of a transformer, in the order of its blocks.

    Args:
        transformer: a diffusers transformer, or a module whose sites were assigned; weights may be
            on the meta device.
        auxiliary: also list the blocks beside the trunk, such as refiners and control branches.

    Returns:
        Sites ordered by block, then as the family lists them.

    Raises:
        UnsupportedModelError: no family knows a block of the model.
    """
    if transformer in _assigned and not auxiliary:
        return _assigned[transformer][0]
    sites = tuple(
        site
        for path, block, family in _known_blocks(transformer)
        if auxiliary or not auxiliary_containers() & set(path.split("."))
        for site in _sites_of(path, block, family)
    )
    if not sites:
        raise UnsupportedModelError(
            f"No sites are known for {type(transformer).__name__}. Its blocks are "
            f"{_block_classes(transformer)}. Discover its sites with calibri.discover, or pass a "
            "pipeline whose transformer `calibri models` lists."
        )
    return sites


def find_output_sites(transformer: nn.Module) -> tuple[Site, ...]:
    """Find the final linears, whose scaling is the output weight (spec section 1).

    A model with several modalities has one for each; they share the weight.

    Raises:
        UnsupportedModelError: the output of this model is not known.
    """
    if transformer in _assigned:
        return _assigned[transformer][1]
    name, family = type(transformer).__name__, family_of(transformer)
    # A layer called proj_out says nothing about a model whose blocks are not known.
    known = any(True for _ in _known_blocks(transformer))
    paths = [
        path for path, _ in transformer.named_modules() if known and _matches(path, family.outputs)
    ]
    if not paths:
        raise UnsupportedModelError(
            f"The output layer of {name} is not known. Discover its sites with calibri.discover."
        )
    return tuple(
        Site(
            path=path,
            index=None,
            block="",
            layer="output",
            stream="output",
            fold=fold_of(transformer, "", path),
            batch_axis=family.batch_axes.get((name, path), 0),
        )
        for path in paths
    )


def _matches(path: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(path, pattern) for pattern in patterns)


def _known_blocks(transformer: nn.Module) -> Iterator[tuple[str, nn.Module, Family]]:
    for path, module in transformer.named_modules():
        family = block_family(type(module).__name__)
        if family is not None:
            yield path, module, family


def _branches(block: nn.Module, family: Family) -> tuple[Branch, ...]:
    name = type(block).__name__
    # One block class may be built with or without gates.
    variant = f"{name}[{getattr(block, 'norm_type', '')}]"
    rows = family.blocks.get(variant, family.blocks[name])
    return tuple(branch for row in rows for branch in parse_row(row))


def _sites_of(block_path: str, block: nn.Module, family: Family) -> Iterator[Site]:
    drops_text = getattr(block, "context_pre_only", False)
    modules = dict(block.named_modules())
    for branch in _branches(block, family):
        if branch.path not in modules or (branch.stream == "text" and drops_text):
            continue
        yield _site(block_path, block, family, branch)


def _site(block_path: str, block: nn.Module, family: Family, branch: Branch) -> Site:
    axis = family.batch_axes.get((type(block).__name__, branch.path), 0)
    on_text = family.text_containers & set(block_path.split("."))
    reason = NO_FOLD.get(branch.fold.removeprefix("!"), "")
    return Site(
        path=f"{block_path}.{branch.path}",
        index=branch.index,
        block=block_path,
        layer=branch.layer,
        stream="text" if on_text else branch.stream,
        fold=() if reason else fold_of(block, block_path, branch.fold),
        no_fold=reason,
        gated=branch.gated,
        batch_axis=None if family.packed else axis,
    )


def _block_classes(transformer: nn.Module) -> list[str]:
    lists = (m for m in transformer.modules() if isinstance(m, nn.ModuleList) and len(m))
    return sorted({type(members[0]).__name__ for members in lists}) or ["none at all"]
