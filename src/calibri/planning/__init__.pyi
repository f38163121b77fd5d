from .costs import image_teraflop as image_teraflop
from .procedures import Hours as Hours
from .procedures import Procedure as Procedure
from .procedures import diversity_prompts as diversity_prompts
from .procedures import images_by_phase as images_by_phase
from .procedures import measures_first as measures_first
from .relative import image_tokens as image_tokens
from .relative import relative_cost as relative_cost
