"""Which sites share a coefficient, and what it is called."""

from __future__ import annotations

from collections.abc import Iterable

from calibri.config import Granularity
from calibri.pipelines.sites.site import Site


def parameter_names(sites: Iterable[Site], granularity: Granularity) -> tuple[str, ...]:
    """List the distinct coefficient names of a granularity, in the order of the sites."""
    return tuple(dict.fromkeys(site.parameter(granularity) for site in sites))
