"""The columns of a table of scales, and what of a model each of them multiplies.

A table has a column for each site of a pipeline, in the order of ``sites_of``, and behind them one
for the output weight. All outputs of all transformers share that one.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Final, NamedTuple

from torch import nn

from calibri.pipelines import Network, Site, networks_of

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


def scaled_places(networks: nn.Module | Sequence[Network]) -> tuple[tuple[Place, ...], ...]:
    """List what a table of scales multiplies.

    Args:
        networks: those of a pipeline in their order, or a bare transformer.

    Returns:
        For each network its sites, then its outputs.

    Raises:
        UnsupportedModelError: no sites are known.
    """
    # Each alone, so that paths are its own.
    alone = [networks_of(network.transformer)[0] for network in networks_of(networks)]
    columns = itertools.count()
    inner = [[Place(site, next(columns)) for site in network.sites] for network in alone]
    last = next(columns)
    return tuple(
        (*places, *[Place(site, last) for site in network.outputs])
        for network, places in zip(alone, inner, strict=True)
    )
