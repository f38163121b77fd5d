from .calibration import Calibration as Calibration
from .calibration import Sampling as Sampling
from .generate import Picture as Picture
from .source import calibration_folder as calibration_folder
