"""Load a diffusers pipeline by name: the shipped one, a folder, or a repository id."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging as diffusers_logging

from calibri.config import SHIPPED
from calibri.devices import resolve_device
from calibri.errors import UnsupportedModelError, first_line
from calibri.pipelines.dtype_name import DTYPE
from calibri.pipelines.lora import lora_file, merge_lora
from calibri.pipelines.modular import (
    hide_progress,
    is_modular_index,
    load_modular,
    read_index,
)
from calibri.pipelines.names import place_of
from calibri.pipelines.networks import networks_of


def load_pipeline(
    name: str,
    *,
    revision: str | None = None,
    lora: str | None = None,
    dtype: str = "float32",
    device: str = "auto",
) -> Any:
    """Load a pipeline ready to sample, without progress bars.

    Args:
        name: ``"shapes"``, a local folder, or a Hugging Face repository id.
        revision: branch, tag or commit of a repository.
        lora: a LoRA that its transformer gets, see ``lora_file``; None for none.
        dtype: ``"float32"``, ``"bfloat16"`` or ``"float16"``.
        device: see ``resolve_device``.

    Raises:
        UnsupportedModelError: nothing could be loaded under that name, or it has no transformer.
        CalibrationError: the LoRA is for another model.
        ConfigError: the device does not exist.
    """
    target = resolve_device(device)
    adapter = None if lora is None else lora_file(lora)  # before a large model is loaded
    pipe = _from_pretrained(name, revision, getattr(torch, dtype))
    networks_of(pipe)
    hide_progress(pipe)
    if lora is not None and adapter is not None:
        merge_lora(pipe, lora, adapter)
    return pipe.to(target)


def _from_pretrained(name: str, revision: str | None, dtype: torch.dtype) -> Any:
    path = place_of(name)
    verbosity = diffusers_logging.get_verbosity()
    if name == SHIPPED:
        # Its text encoder and VAE are deliberately smaller classes than SD3's own.
        diffusers_logging.set_verbosity_error()
    try:
        if is_modular_index(read_index(name, revision)):
            return load_modular(path, revision, dtype)
        return DiffusionPipeline.from_pretrained(path, revision=revision, **{DTYPE: dtype})
    except (OSError, ValueError, KeyError, AttributeError) as error:
        where = "a folder here" if Path(name).is_dir() else "neither a folder here nor reachable"
        raise UnsupportedModelError(
            f"Cannot load a pipeline from '{name}' ({where}): {first_line(error)}. "
            f"Pass a folder with model_index.json, a repository id, or '{SHIPPED}'."
        ) from error
    finally:
        diffusers_logging.set_verbosity(verbosity)
