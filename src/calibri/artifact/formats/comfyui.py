"""A calibration as files for the LoRA loader of ComfyUI, without a node of ours.

ComfyUI adds ``strength * (rescale * R W - W)`` to a tensor W for a BOFT adapter (Liu et al. 2023,
arXiv 2311.06243, with the rescaling of LyCORIS), R being a product of butterfly rotations. With no
rotations that is s W at strength 1, whatever W is: a fine-tune, another precision, or what another
LoRA made of it. So a file needs a number for each tensor, and the names, but no weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from calibri.artifact.calibration import Calibration
from calibri.artifact.formats.linears import folded_scales
from calibri.artifact.formats.native_names import native_names
from calibri.artifact.formats.workflow import workflow_json
from calibri.coefficients import Coefficients
from calibri.errors import FuseError, RunError, UnsupportedModelError
from calibri.files import write_atomically
from calibri.pipelines import Network, networks_of

_SUFFIX = ".safetensors"
# What the networks of a pipeline are for, by the names of the second and later ones.
_PURPOSES: dict[tuple[str, ...], tuple[str, ...]] = {
    ("transformer_2",): ("high_noise", "low_noise"),
    ("unconditional_transformer",): ("conditional", "unconditional"),
}


def write_lora(
    calibration: Calibration, model: nn.Module | Sequence[Network], output: Path
) -> None:
    """Write a safetensors file for ``models/loras`` of ComfyUI, and a workflow that loads it.

    Its strength blends from the original model, 0, to the full calibration, 1. It multiplies what
    is there when it is loaded, so it belongs behind other LoRAs. A pipeline of two models gets a
    folder with a file for each, called by what it is for.

    Args:
        calibration: what to write.
        model: the transformer, or the networks of a pipeline; weights may be on the meta device.
        output: file to write, or the folder. The workflow is beside the file, in the folder.

    Raises:
        UnsupportedModelError: the names of this class in ComfyUI are not known.
        FuseError: the calibration is more than one factor for each tensor.
        RunError: it cannot be written, or the workflow exists.
    """
    networks = networks_of(model)
    files = lora_files(networks, output)
    contents = [
        _lora(calibration, native_scales(calibration.coefficients, networks, index))
        for index in range(len(networks))
    ]
    graph = _workflow_file(output, files)
    if graph.exists():
        raise RunError(f"'{graph}' exists. Choose another --output.")
    workflow = workflow_json(calibration, networks[0].transformer, _in_loras(files))
    _make(output, files)
    for file, content in zip(files, contents, strict=True):
        write_atomically(file, content)
    if workflow:
        write_atomically(graph, workflow.encode())


def lora_files(networks: Sequence[Network], output: Path) -> list[Path]:
    """Say where the file of each network is written.

    Raises:
        UnsupportedModelError: it is not known what the networks are for.
        RunError: a file is named where there are several.
    """
    if len(networks) == 1:
        return [output]
    names = _PURPOSES.get(tuple(network.name for network in networks[1:]))
    if names is None:
        raise UnsupportedModelError(
            f"Which of the {len(networks)} transformers ComfyUI loads where is not known. Save the "
            "whole pipeline with `calibri fuse`."
        )
    if output.suffix == _SUFFIX:
        raise RunError(
            f"This pipeline has {len(names)} transformers, {' and '.join(names)}, and ComfyUI "
            f"loads a file for each. Name a folder: --output {output.with_suffix('')}."
        )
    return [output / f"{name}{_SUFFIX}" for name in names]


def _workflow_file(output: Path, files: Sequence[Path]) -> Path:
    return files[0].with_name("workflow.json") if len(files) > 1 else _beside(output)


def _beside(output: Path) -> Path:
    return output.with_name(f"{output.name.removesuffix(_SUFFIX)}.workflow.json")


def _in_loras(files: Sequence[Path]) -> list[str]:
    """Name files as the loader lists them once they, or their folder, are in ``models/loras``."""
    if len(files) == 1:
        return [files[0].name]
    return [f"{file.parent.name}/{file.name}" for file in files]


def _make(output: Path, files: Sequence[Path]) -> None:
    if len(files) > 1:
        try:
            output.mkdir(parents=True)
        except OSError as error:
            raise RunError(f"Cannot make the folder '{output}': {error.strerror}.") from error


def _lora(calibration: Calibration, scales: Mapping[str, float]) -> bytes:
    tensors: dict[str, Tensor] = {}
    for name, scale in scales.items():
        # Its loader leaves out the .weight of a name, and nothing else.
        tensors |= _adapter(f"diffusion_model.{name.removesuffix('.weight')}", scale)
    return save(tensors, _metadata(calibration))


def native_scales(
    coefficients: Coefficients, model: nn.Module | Sequence[Network], index: int = 0
) -> dict[str, float]:
    """List the tensors of a transformer that a calibration scales by their names in ComfyUI.

    Args:
        coefficients: of this model.
        model: the transformer, or the networks of a pipeline; weights may be on the meta device.
        index: of the network.

    Returns:
        Name of each weight and bias in ComfyUI's model to its factor; tensors that stay as they
        are are left out.

    Raises:
        UnsupportedModelError: the names of this class in ComfyUI are not known.
        FuseError: the calibration is more than one factor for each tensor.
        CalibrationError: the coefficients are of another model.
    """
    networks = networks_of(model)
    transformer = networks[index].transformer
    names = native_names(transformer)
    found: dict[str, float] = {}
    for site, fold, scale in folded_scales(coefficients, networks, index):
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
