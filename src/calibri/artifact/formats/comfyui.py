"""A calibration as a file for the LoRA loader of ComfyUI, without a node of ours.

ComfyUI adds ``strength * (rescale * R W - W)`` to a tensor W for a BOFT adapter (Liu et al. 2023,
arXiv 2311.06243, with the rescaling of LyCORIS), R being a product of butterfly rotations. With no
rotations that is s W at strength 1, whatever W is: a fine-tune, another precision, or what another
LoRA made of it. So a file needs a number for each tensor, and the names, but no weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from calibri.artifact.calibration import Calibration
from calibri.artifact.formats.linears import folded_scales
from calibri.artifact.formats.native_names import native_names
from calibri.coefficients import Coefficients
from calibri.errors import FuseError, UnsupportedModelError
from calibri.files import write_atomically


def write_lora(calibration: Calibration, transformer: nn.Module, output: Path) -> None:
    """Write one safetensors file for ``models/loras`` of ComfyUI.

    Its strength blends from the original model, 0, to the full calibration, 1. It multiplies what
    is there when it is loaded, so it belongs behind other LoRAs.

    Args:
        calibration: what to write.
        transformer: its model; the weights may be on the meta device.
        output: file to write.

    Raises:
        UnsupportedModelError: the names of this class in ComfyUI are not known.
        FuseError: the calibration is more than one factor for each tensor.
        RunError: it cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    for name, scale in native_scales(calibration.coefficients, transformer).items():
        # Its loader leaves out the .weight of a name, and nothing else.
        tensors |= _adapter(f"diffusion_model.{name.removesuffix('.weight')}", scale)
    write_atomically(output, save(tensors, _metadata(calibration)))


def native_scales(coefficients: Coefficients, transformer: nn.Module) -> dict[str, float]:
    """List the tensors that a calibration scales by their names in ComfyUI.

    Args:
        coefficients: of this transformer.
        transformer: its weights may be on the meta device.

    Returns:
        Name of each weight and bias in ComfyUI's model to its factor; tensors that stay as they
        are are left out.

    Raises:
        UnsupportedModelError: the names of this class in ComfyUI are not known.
        FuseError: the calibration is more than one factor for each tensor.
        CalibrationError: the coefficients are of another model.
    """
    names = native_names(transformer)
    found: dict[str, float] = {}
    for site, fold, scale in folded_scales(coefficients, transformer):
        path = names.of(fold.path)
        if fold.rows is not None or not path:
            raise UnsupportedModelError(
                f"The scale of '{site.name}' goes into a part of '{fold.path}', which a file for "
                "ComfyUI has no name for. Save the whole model with `calibri fuse`."
            )
        for suffix in _parameters(transformer, fold.path):
            name = f"{path}{suffix}"
            if name in found:
                raise FuseError(
                    f"'{name}' takes the scales of several sites, and a file for ComfyUI has one "
                    "number for it. Save the whole model with `calibri fuse`."
                )
            found[name] = scale
    return found


def _parameters(transformer: nn.Module, path: str) -> list[str]:
    """Say what to put behind the path of a module for its parameters; nothing behind one's own."""
    parent, _, name = path.rpartition(".")
    target = getattr(transformer.get_submodule(parent), name)
    if not isinstance(target, nn.Module):
        return [""]
    return [f".{parameter}" for parameter, _ in target.named_parameters(recurse=False)]


def _adapter(name: str, scale: float) -> Mapping[str, Tensor]:
    return {
        f"{name}.oft_blocks": torch.empty(0, 1, 2, 2),
        f"{name}.alpha": torch.tensor(0.0),  # a bound on rotations, which it asks for
        f"{name}.rescale": torch.tensor([scale], dtype=torch.float32),
    }


def _metadata(calibration: Calibration) -> dict[str, str]:
    sampling = calibration.sampling
    return {
        "modelspec.title": f"Calibri calibration of {calibration.base_model}",
        "modelspec.description": _advice(calibration),
        "calibri.base_model": calibration.base_model,
        "calibri.num_inference_steps": str(sampling.num_inference_steps),
        "calibri.guidance_scale": str(sampling.guidance_scale),
        "calibri.true_cfg_scale": str(sampling.true_cfg_scale),
    }


def _advice(calibration: Calibration) -> str:
    sampling = calibration.sampling
    return (
        f"Made for {sampling.num_inference_steps} steps, guidance {sampling.guidance_scale:g} and "
        f"classifier-free guidance {sampling.true_cfg_scale:g}. Load it after other LoRAs."
    )
