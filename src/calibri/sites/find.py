"""Find the sites of a transformer."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from calibri.errors import UnsupportedModelError
from calibri.sites.site import Site
from calibri.sites.table import BLOCKS, OUTPUTS, parse_row


def find_sites(transformer: nn.Module) -> tuple[Site, ...]:
    """List every residual-branch site of a transformer, in the order of its blocks.

    Args:
        transformer: a diffusers transformer; weights may be on the meta device.

    Returns:
        Sites ordered by block, then as the block's table row lists them.

    Raises:
        UnsupportedModelError: no block of the model is in the table.
    """
    sites = tuple(
        site for path, block in _known_blocks(transformer) for site in _sites_of(path, block)
    )
    if not sites:
        raise UnsupportedModelError(
            f"No sites are known for {type(transformer).__name__}. Its blocks are "
            f"{_block_classes(transformer)}; known blocks are {sorted(BLOCKS)}. "
            "Pass a pipeline whose transformer is a Diffusion Transformer."
        )
    return sites


def find_output_site(transformer: nn.Module) -> Site:
    """Find the final linear, whose scaling is the output weight (spec section 1).

    Raises:
        UnsupportedModelError: the model class is not in the table.
    """
    path = OUTPUTS.get(type(transformer).__name__)
    if path is None:
        raise UnsupportedModelError(
            f"The output layer of {type(transformer).__name__} is not known. "
            f"Known models are {sorted(OUTPUTS)}."
        )
    return Site(path, None, block="", layer="output", stream="output", fold=(path,))


def _known_blocks(transformer: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for path, module in transformer.named_modules():
        if type(module).__name__ in BLOCKS:
            yield path, module


def _sites_of(block_path: str, block: nn.Module) -> Iterator[Site]:
    drops_text = getattr(block, "context_pre_only", False)
    for row in BLOCKS[type(block).__name__]:
        for layer, path, index, stream, fold in parse_row(row):
            missing = getattr(block, path, None) is None
            if missing or (stream == "text" and drops_text):
                continue
            yield Site(
                f"{block_path}.{path}", index, block_path, layer, stream, (f"{block_path}.{fold}",)
            )


def _block_classes(transformer: nn.Module) -> list[str]:
    lists = (m for m in transformer.modules() if isinstance(m, nn.ModuleList) and len(m))
    return sorted({type(members[0]).__name__ for members in lists}) or ["none at all"]
