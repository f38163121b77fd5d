"""A calibration as a file for the LoRA loader of ComfyUI, without a node of ours.

A weight-decomposed adapter (DoRA, arXiv 2402.09353) replaces W by ``m * (W + BA) / |W + BA|`` row
by row. With BA = 0 and ``m = s |W|`` that is s W; a difference takes the bias to s b.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from calibri.artifact.calibration import Calibration
from calibri.artifact.formats.linears import linear_scales
from calibri.errors import UnsupportedModelError
from calibri.files import write_atomically
from calibri.pipelines import classes_where, family_of


def write_lora(calibration: Calibration, transformer: nn.Module, output: Path) -> None:
    """Write one safetensors file for ``models/loras`` of ComfyUI.

    Its strength blends from the original model, 0, to the full calibration, 1. The norms are those
    of the weights given here: on a base in 8 bits or less it is as exact as that base's norms.

    Args:
        calibration: what to write.
        transformer: its model with weights.
        output: file to write.

    Raises:
        UnsupportedModelError: ComfyUI does not find the layers of this class by name.
        FuseError: the calibration is more than one factor for each linear layer.
        RunError: it cannot be written.
    """
    if not family_of(transformer).comfyui:
        known = ", ".join(classes_where(lambda row: row.comfyui))
        raise UnsupportedModelError(
            f"ComfyUI does not know the layers of a {type(transformer).__name__} by their names in "
            f"diffusers, only those of {known}. Save the whole model with `calibri fuse`."
        )
    scales = linear_scales(calibration.coefficients, transformer)
    tensors = {
        f"transformer.{path}.{part}": value
        for path, factors in scales.items()
        for part, value in _adapter(transformer.get_submodule(path), factors)
    }
    write_atomically(output, save(tensors, _metadata(calibration)))


def _adapter(linear: nn.Module, factors: Tensor) -> Iterator[tuple[str, Tensor]]:
    assert isinstance(linear, nn.Linear)
    weight, bias = linear.weight.detach().double().cpu(), linear.bias
    norms = torch.linalg.vector_norm(weight, dim=1)
    yield "lora_up.weight", torch.zeros(weight.shape[0], 1)
    yield "lora_down.weight", torch.zeros(1, weight.shape[1])
    yield "dora_scale", (factors * norms).float()[:, None].contiguous()
    if bias is not None:
        yield "diff_b", ((factors - 1.0) * bias.detach().double().cpu()).float()


def _metadata(calibration: Calibration) -> dict[str, str]:
    return {
        "modelspec.title": f"Calibri calibration of {calibration.base_model}",
        "calibri.base_model": calibration.base_model,
        "calibri.num_inference_steps": str(calibration.sampling.num_inference_steps),
        "calibri.guidance_scale": str(calibration.sampling.guidance_scale),
    }
