"""Which module outputs of a transformer are branches of its residual stream."""

from calibri.sites.find import assign_sites, find_output_sites, find_sites
from calibri.sites.site import Fold, Site, Stream

__all__ = ["Fold", "Site", "Stream", "assign_sites", "find_output_sites", "find_sites"]
