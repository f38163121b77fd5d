"""Ask and tell over vectors; knows nothing of models, images or rewards."""

from calibri.search.adam import AdamSearch
from calibri.search.cma import CMASearch, default_popsize, tail_mean
from calibri.search.stopping import reached_plateau

__all__ = ["AdamSearch", "CMASearch", "default_popsize", "reached_plateau", "tail_mean"]
