"""What tests and benchmarks of sites measure on a specimen."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from calibri.pipelines.discovery.discover import discover
from calibri.pipelines.discovery.findings import Discovery
from calibri.pipelines.sites.site import Site
from calibri.sampling.scales.scaler import Scaler
from tests.pipelines.zoo import Specimen, run


@contextmanager
def scaled(model: nn.Module) -> Iterator[Scaler]:
    scaler = Scaler(model)
    try:
        yield scaler
    finally:
        scaler.remove()


def random_scales(scaler: Scaler, rows: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    size = (rows, 1, len(scaler.sites) + 1)
    return 0.5 + torch.rand(size, generator=generator, dtype=torch.float64)


def distance(first: list[Tensor], second: list[Tensor]) -> float:
    """Largest difference, relative to the scale of each output."""
    pairs = zip(first, second, strict=True)
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


def measured(specimen: Specimen, model: nn.Module) -> Discovery:
    return discover(model, lambda: run(model, specimen.draw(3)))


def by_block(sites: list[Site] | tuple[Site, ...]) -> dict[str, dict[str, Site]]:
    blocks: dict[str, dict[str, Site]] = {}
    for site in sites:
        blocks.setdefault(site.block, {})[site.name] = site
    return blocks
