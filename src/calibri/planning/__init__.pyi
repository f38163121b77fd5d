from .costs import Plan as Plan
from .procedures import Hours as Hours
from .procedures import Procedure as Procedure
from .procedures import images_by_phase as images_by_phase
from .procedures import measures_first as measures_first
