"""Load a diffusers pipeline by name: the shipped one, a folder, or a repository id."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from torch import nn

from calibri.config import SHIPPED
from calibri.errors import ConfigError, UnsupportedModelError
from calibri.pipelines.networks import networks_of
from calibri.pipelines.pipeline import Pipeline, PipelineOrTransformer
from calibri.pipelines.sites.find import find_sites
from calibri.shapes import PIPELINE_PATH


def resolve_device(device: str) -> torch.device:
    """Turn ``"auto"`` into the best device here, and check any other name.

    Raises:
        ConfigError: the device does not exist.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"Device '{device}' cannot be used here: {error}. Try 'auto'.") from error
    return chosen


def load_pipeline(
    name: str, *, revision: str | None = None, dtype: str = "float32", device: str = "auto"
) -> Any:
    """Load a pipeline ready to sample, without progress bars.

    Args:
        name: ``"shapes"``, a local folder, or a Hugging Face repository id.
        revision: branch, tag or commit of a repository.
        dtype: ``"float32"``, ``"bfloat16"`` or ``"float16"``.
        device: see ``resolve_device``.

    Raises:
        UnsupportedModelError: nothing could be loaded under that name, or it has no transformer.
        ConfigError: the device does not exist.
    """
    target = resolve_device(device)
    pipe = _from_pretrained(name, revision, getattr(torch, dtype))
    transformer_of(pipe)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(target)


def transformer_of(pipe: PipelineOrTransformer) -> nn.Module:
    """Return the transformer of a pipeline, the first where it has several.

    Raises:
        UnsupportedModelError: the pipeline has none (a UNet, say).
    """
    return networks_of(pipe)[0].transformer


def _from_pretrained(name: str, revision: str | None, dtype: torch.dtype) -> Any:
    path = PIPELINE_PATH if name == SHIPPED else name
    verbosity = diffusers_logging.get_verbosity()
    if name == SHIPPED:
        # Its text encoder and VAE are deliberately smaller classes than SD3's own.
        diffusers_logging.set_verbosity_error()
    try:
        return DiffusionPipeline.from_pretrained(path, revision=revision, dtype=dtype)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        where = "a folder here" if Path(name).is_dir() else "neither a folder here nor reachable"
        raise UnsupportedModelError(
            f"Cannot load a pipeline from '{name}' ({where}): {_first_line(error)}. "
            f"Pass a folder with model_index.json, a repository id, or '{SHIPPED}'."
        ) from error
    finally:
        diffusers_logging.set_verbosity(verbosity)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else repr(error)


def pipeline_bytes(pipe: Pipeline) -> int:
    """Add up the sizes of all weights of a pipeline."""
    modules = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
    return sum(p.numel() * p.element_size() for part in modules for p in part.parameters())


def compile_transformers(pipe: Pipeline, backend: Any = "inductor") -> None:
    """Compile every block of the transformers: in them is the time, and no decision of ours.

    What comes before the blocks, which rows are conditional for one, differs from batch to batch
    and would be compiled again. Call this after hooks were put on: later ones compile it again.

    Args:
        pipe: a diffusers pipeline.
        backend: of ``torch.compile``.

    Raises:
        ConfigError: nothing can be compiled here.
    """
    try:
        sample = torch.ones(2, device=pipe._execution_device)
        torch.compile(lambda values: values * 2 + 1, backend=backend)(sample)
    except Exception as error:
        # What the backend raised, which torch wraps in words about the graph.
        cause = getattr(error, "inner_exception", error)
        raise ConfigError(
            f"torch.compile does not work here: {_first_line(cause)}. It needs a C++ compiler on a "
            "CPU and Triton on a GPU. Set sampling.compile to false."
        ) from error
    for network in networks_of(pipe):
        for path in dict.fromkeys(site.block for site in find_sites(network.transformer)):
            network.transformer.get_submodule(path).compile(backend=backend)
