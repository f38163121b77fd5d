"""What a run was computed on."""

from __future__ import annotations

import os
import platform

import diffusers
import torch
import transformers


def machine() -> dict[str, str]:
    """Name system, device and libraries, for the record."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "transformers": transformers.__version__,
    }
