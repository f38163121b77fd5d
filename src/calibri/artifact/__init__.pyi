from .calibration import Calibration as Calibration
from .calibration import Sampling as Sampling
from .formats.registry import EXPORTERS as EXPORTERS
from .formats.registry import Format as Format
from .generate import Picture as Picture
from .grid import enlarged as enlarged
from .publish import preview as preview
from .source import calibration_folder as calibration_folder
