"""A calibration as a folder: save, load, model card, hub."""

from calibri.artifact.calibration import Calibration, Sampling

__all__ = ["Calibration", "Sampling"]
