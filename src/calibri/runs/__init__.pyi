from .calibrate import check_search as check_search
from .calibrate import default_run_name as default_run_name
from .calibrate import planned_images as planned_images
from .comparison import verdict as verdict
from .folder import RunFolder as RunFolder
from .inspect import SpaceRecord as SpaceRecord
from .session import Session as Session
