"""A calibration as text for the node FluxBlocksBuster of ComfyUI_essentials.

Each line is a pattern that is looked for in the names of ComfyUI's tensors, and a factor for those
that have it. It can be read, edited by hand and pasted.
"""

from __future__ import annotations

import re
from pathlib import Path

from torch import nn

from calibri.artifact.calibration import Calibration
from calibri.artifact.formats.comfyui import native_scales
from calibri.files import write_atomically


def write_blocks(calibration: Calibration, transformer: nn.Module, output: Path) -> None:
    """Write the text for the field ``blocks`` of the node.

    Args:
        calibration: what to write.
        transformer: its model; the weights may be on the meta device.
        output: file to write.

    Raises:
        UnsupportedModelError: the names of this class in ComfyUI are not known.
        FuseError: the calibration is more than one factor for each tensor.
        RunError: it cannot be written.
    """
    scales = native_scales(calibration.coefficients, transformer)
    # A weight and its bias have one factor.
    modules = {name.rpartition(".")[0]: scale for name, scale in scales.items()}
    lines = [
        rf"^diffusion_model\.{re.escape(path)}\.(weight|bias)={scale!r}"
        for path, scale in modules.items()
    ]
    write_atomically(output, ("\n".join(lines) + "\n").encode())
