"""One tiny random model and inputs for every transformer class that we run."""

from tests.sites.zoo.image import IMAGE
from tests.sites.zoo.other import OTHER
from tests.sites.zoo.specimen import Specimen, run, take_row
from tests.sites.zoo.video import VIDEO

ZOO = (*IMAGE, *VIDEO, *OTHER)

__all__ = ["ZOO", "Specimen", "run", "take_row"]
