"""Weights published as a pickle, to safetensors: once, when the user asks for it, tensors only."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from calibri.errors import RewardError

# Where training scripts put the weights among other things.
_NESTS = ("state_dict", "model")


def convert_checkpoint(path: Path) -> Path:
    """Write the tensors of a ``.pt``, ``.pth`` or ``.bin`` file to safetensors beside it.

    The file is read by torch's unpickler for weights, which builds tensors and plain containers and
    refuses everything else; code in the file does not run.

    Args:
        path: of the file.

    Returns:
        The path of the new file: the same name with ``.safetensors``.

    Raises:
        RewardError: the file is missing, holds more than tensors and plain values, or no tensors,
            or the new file exists already or cannot be written.
    """
    target = path.with_suffix(".safetensors")
    if target.exists():
        raise RewardError(
            f"'{target}' exists, and nothing is overwritten. Use it as it is, or remove it first."
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise RewardError(
            f"Cannot read tensors from '{path}': {type(error).__name__}. It is missing, damaged, "
            "or holds more than weights, and Calibri runs no code of it. Check where it is from."
        ) from error
    tensors = _tensors(content)
    if not tensors:
        raise RewardError(f"'{path}' holds no tensors by name. Check that it is a checkpoint.")
    # Tensors that share memory cannot be saved together.
    _write({name: value.contiguous().clone() for name, value in tensors.items()}, target)
    return target


def _write(tensors: dict[str, Tensor], target: Path) -> None:
    # Half a file would be read as damaged weights later.
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        save_file(tensors, temporary)
        temporary.replace(target)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        raise RewardError(
            f"Cannot write '{target}': {error}. It needs about as much room as the original, in a "
            "folder that can be written to; nothing was changed."
        ) from error


def _tensors(content: object) -> dict[str, Tensor]:
    if not isinstance(content, Mapping):
        return {}
    for nest in _NESTS:
        if isinstance(content.get(nest), Mapping):
            return _tensors(content[nest])
    return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
