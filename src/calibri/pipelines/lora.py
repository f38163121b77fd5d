"""A LoRA in the weights of a pipeline: published ones in the form of PEFT or of diffusers.

It is merged, as published alignments are meant to be used (``merge_and_unload`` of PEFT), so that
the pipeline is an ordinary one afterwards: it costs what it did, and scales, compiling and fusing
know nothing of it. Safetensors alone are read.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError
from torch import nn

from calibri.errors import CalibrationError, UnsupportedModelError, first_line
from calibri.pipelines.adapters import (
    ADAPTER_FILES,
    LowRank,
    adapter_file,
    for_text_encoders,
    is_adapter,
    read_adapter,
)
from calibri.pipelines.names import can_be_repository
from calibri.pipelines.networks import networks_of
from calibri.pipelines.stored import read_header

_SETTINGS = "adapter_config.json"
# Marks a transformer with what was merged into it.
_MERGED = "_calibri_lora"
# Rows that are multiplied out at a time, in double precision.
_ROWS = 4096


@dataclass(frozen=True)
class Lora:
    """A LoRA that was merged.

    Attributes:
        name: as it was given.
        digest: the first 16 hexadecimal digits of the SHA-256 of its file.
        parameters: numbers in it.
    """

    name: str
    digest: str
    parameters: int


def lora_of(pipe: Any) -> Lora | None:
    """Say which LoRA ``load_pipeline`` merged into a pipeline, if any."""
    return getattr(networks_of(pipe)[0].transformer, _MERGED, None)


def merge_lora(pipe: Any, name: str, file: Path) -> None:
    """Add a LoRA to the weights of the transformer of a pipeline.

    Args:
        pipe: a loaded pipeline.
        name: of the LoRA, for the record.
        file: as PEFT, diffusers or kohya's scripts save it, see ``lora_file``.

    Raises:
        UnsupportedModelError: it cannot be read, or the pipeline has several transformers or
            weights that cannot be added to.
        CalibrationError: it is for another model, or no LoRA of a transformer alone.
    """
    networks = networks_of(pipe)
    if len(networks) > 1:
        raise UnsupportedModelError(
            f"'{name}' was not loaded: the pipeline has {len(networks)} transformers, and a LoRA "
            "does not say for which it is. Fuse it with diffusers (pipe.fuse_lora(), "
            "pipe.unload_lora_weights()), save the pipeline and pass its folder."
        )
    transformer = networks[0].transformer
    _refuse_text_encoders(name, file)
    weights = dict(transformer.named_parameters())
    shapes = {own: tuple(weight.shape) for own, weight in weights.items()}
    changes = read_adapter(file, shapes, type(pipe).__name__)
    if odd := [own for own in changes if not weights[own].is_floating_point()]:
        raise UnsupportedModelError(
            f"'{name}' was not loaded: '{odd[0]}' is stored quantised. Load the pipeline as it was "
            "before quantising."
        )
    for own, change in changes.items():
        _add(weights[own], change)
    count = sum(change.up.numel() + change.down.numel() for change in changes.values())
    setattr(transformer, _MERGED, Lora(name, _digest(file), count))


def lora_digest(name: str) -> str:
    """Tell what is in a LoRA: 16 hexadecimal digits of the SHA-256 of its file.

    Args:
        name: see ``lora_file``.

    Raises:
        UnsupportedModelError: there is none.
    """
    return _digest(lora_file(name))


@torch.no_grad()
def _add(weight: nn.Parameter, change: LowRank) -> None:
    """Add in double precision and round once, a few rows at a time."""
    for first in range(0, len(weight), _ROWS):
        rows = weight[first : first + _ROWS]
        moved = change.rows(first, first + len(rows)).view_as(rows).to(rows.device)
        rows.copy_(rows.double() + moved)


def lora_file(name: str) -> Path:
    """Find the safetensors file of a LoRA, after a download where it must be.

    Args:
        name: a folder or safetensors file, a repository id, or ``user/name/FILE.safetensors`` of
            one.

    Raises:
        UnsupportedModelError: there is none.
    """
    path = Path(name)
    if path.exists():
        found = adapter_file(path)
        if found is None:
            raise _missing(name, f"the folder has neither {' nor '.join(ADAPTER_FILES)}")
        return found
    repository, inner = _parted(name)
    inside = not inner or (inner.endswith(".safetensors") and ".." not in inner.split("/"))
    if not (can_be_repository(repository) and inside):
        raise _missing(name, "there is no such folder here, and a repository is called user/name")
    try:
        return _downloaded(repository, (inner,) if inner else ADAPTER_FILES)
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise _missing(name, first_line(error)) from error


def _parted(name: str) -> tuple[str, str]:
    """Part ``user/name/FILE`` into the repository and what is in it, if anything."""
    parts = name.split("/")
    return "/".join(parts[:2]), "/".join(parts[2:])


def _downloaded(repository: str, names: tuple[str, ...]) -> Path:
    """Take the first of the files that the repository has, with the settings of PEFT beside it."""
    *others, last = names
    for name in others:
        try:
            return Path(hf_hub_download(repository, name))
        except EntryNotFoundError:
            continue
    file = Path(hf_hub_download(repository, last))
    if last in ADAPTER_FILES:
        hf_hub_download(repository, _SETTINGS)
    return file


def _missing(name: str, reason: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"Cannot load the LoRA '{name}': {reason}. Pass a folder with {' or '.join(ADAPTER_FILES)} "
        "(pickled files are never read), a .safetensors file, or a repository id."
    )


def _refuse_text_encoders(name: str, file: Path) -> None:
    try:
        names = list(read_header(file))
    except (OSError, ValueError) as error:
        raise _missing(name, first_line(error)) from error
    if not is_adapter(names):
        raise CalibrationError(
            f"'{name}' is no LoRA: {file.name} has no low-rank matrices. A whole model is a "
            "pipeline of its own: pass its folder as the pipeline."
        )
    if parts := for_text_encoders(names):
        raise CalibrationError(
            f"'{name}' changes text encoders, too ({parts[0]}), and a calibration is of the "
            "transformer. Fuse it with diffusers (pipe.fuse_lora(), pipe.unload_lora_weights()), "
            "save the pipeline and pass its folder."
        )


def _digest(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while block := opened.read(2**20):
            digest.update(block)
    return digest.hexdigest()[:16]
