"""Which sites share a coefficient, and what it is called."""

from __future__ import annotations

from collections.abc import Iterable
from typing import get_args

from calibri.config import Granularity
from calibri.pipelines.sites.site import Site

GRANULARITIES: tuple[Granularity, ...] = get_args(Granularity)


def parameter_name(site: Site, granularity: Granularity) -> str:
    """Name the coefficient that scales a site: its block, its layer in the block, or itself."""
    if granularity == "block":
        return site.block
    return f"{site.block}.{site.layer}" if granularity == "layer" else site.name


def parameter_names(sites: Iterable[Site], granularity: Granularity) -> tuple[str, ...]:
    """List the distinct coefficient names of a granularity, in the order of the sites."""
    return tuple(dict.fromkeys(parameter_name(site, granularity) for site in sites))
