"""Ask and tell over vectors; knows nothing of models, images or rewards."""

from calibri.search.adam import AdamSearch
from calibri.search.cma import CMASearch, default_popsize, large_popsize, tail_mean
from calibri.search.racing import first_prompts, images_of_generation, race_scores, survivors
from calibri.search.schedule import bucket_size
from calibri.search.stopping import reached_plateau, select

__all__ = [
    "AdamSearch",
    "CMASearch",
    "bucket_size",
    "default_popsize",
    "first_prompts",
    "images_of_generation",
    "large_popsize",
    "race_scores",
    "reached_plateau",
    "select",
    "survivors",
    "tail_mean",
]
