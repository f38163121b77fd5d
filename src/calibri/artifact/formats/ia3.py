"""A calibration as an IA3 adapter of PEFT, whose vectors multiply what linear layers return.

IA3 (Liu et al. 2022, arXiv 2205.05638) scales activations, biases included, and so it is exactly a
calibration that is constant over rows and steps.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from safetensors.torch import save
from torch import float32, nn

from calibri.artifact.calibration import Calibration
from calibri.artifact.formats.linears import linear_scales
from calibri.errors import RunError
from calibri.files import write_atomically


def write_ia3(calibration: Calibration, transformer: nn.Module, output: Path) -> None:
    """Write a folder that ``peft.PeftModel.from_pretrained(pipe.transformer, folder)`` loads.

    Args:
        calibration: what to write.
        transformer: its model; the weights may be on the meta device.
        output: folder to write.

    Raises:
        FuseError: the calibration is more than one factor for each linear layer.
        RunError: it cannot be written.
    """
    scales = linear_scales(calibration.coefficients, transformer)
    tensors = {
        f"base_model.model.{path}.ia3_l": factors.to(float32)[:, None].contiguous()
        for path, factors in scales.items()
    }
    config: dict[str, object] = {
        "peft_type": "IA3",
        "base_model_name_or_path": calibration.base_model,
        "revision": calibration.base_revision,
        "inference_mode": True,
        # PEFT takes a list as endings of names, and a string as a pattern of whole names.
        "target_modules": "|".join(re.escape(path) for path in scales),
        "feedforward_modules": [],
    }
    try:
        output.mkdir(parents=True)
    except OSError as error:
        raise RunError(f"Cannot make the folder '{output}': {error.strerror}.") from error
    write_atomically(output / "adapter_model.safetensors", save(tensors))
    write_atomically(output / "adapter_config.json", f"{json.dumps(config, indent=2)}\n".encode())
