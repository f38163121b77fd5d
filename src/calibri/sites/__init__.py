"""Which module outputs of a transformer are branches of its residual stream."""

from calibri.sites.find import find_output_site, find_sites
from calibri.sites.site import Site, Stream

__all__ = ["Site", "Stream", "find_output_site", "find_sites"]
