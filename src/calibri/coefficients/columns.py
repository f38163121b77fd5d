"""The columns of a table of scales, and what of a model each of them multiplies.

A table has a column for each site of a pipeline, in the order of ``sites_of``, and behind them one
for the output weight. All outputs of all transformers share that one.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from torch import nn

from calibri.pipelines import Networks, Site, as_networks, find_output_sites, find_sites

# The output weight is the last column, however many sites there are.
OUTPUT: Final = -1


class Place(NamedTuple):
    """An output inside a transformer that is multiplied.

    Attributes:
        site: where, by its own path in the transformer.
        column: of the table of scales.
    """

    site: Site
    column: int


def scaled_places(networks: nn.Module | Networks) -> tuple[tuple[Place, ...], ...]:
    """List what a table of scales multiplies.

    Args:
        networks: those of a pipeline in their order, or a bare transformer.

    Returns:
        For each network its sites, then its outputs.

    Raises:
        UnsupportedModelError: no sites are known.
    """
    found, first = [], 0
    for network in as_networks(networks):
        sites, outputs = find_sites(network.transformer), find_output_sites(network.transformer)
        inner = [Place(site, first + number) for number, site in enumerate(sites)]
        found.append((*inner, *[Place(site, OUTPUT) for site in outputs]))
        first += len(sites)
    return tuple(found)
