"""Which module outputs of a transformer are branches of its residual stream."""

from calibri.sites.find import assign_sites, find_output_sites, find_sites
from calibri.sites.networks import Network, Networks, as_networks, networks_of, sites_of
from calibri.sites.site import Fold, Site, Stream

__all__ = [
    "Fold",
    "Network",
    "Networks",
    "Site",
    "Stream",
    "as_networks",
    "assign_sites",
    "find_output_sites",
    "find_sites",
    "networks_of",
    "sites_of",
]
