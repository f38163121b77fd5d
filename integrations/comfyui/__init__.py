"""A node for ComfyUI that loads a calibration: copy this folder to ``custom_nodes/calibri``."""

from .nodes import LoadCalibration

NODE_CLASS_MAPPINGS = {"CalibriLoadCalibration": LoadCalibration}
NODE_DISPLAY_NAME_MAPPINGS = {"CalibriLoadCalibration": "Load Calibration (Calibri)"}

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
