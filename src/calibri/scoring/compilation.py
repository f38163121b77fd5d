"""Compile the transformers of a pipeline."""

from __future__ import annotations

from typing import Any

import torch

from calibri.errors import ConfigError, first_line
from calibri.pipelines import Pipeline, networks_of, sites_of


def compile_transformers(pipe: Pipeline, backend: Any = "inductor") -> None:
    """Compile every block of the transformers, which take nearly all of the time.

    What happens around the blocks, such as telling which rows are conditional, differs from batch
    to batch and would be compiled again. Call this after hooks were put on: torch ignores later
    ones.

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
            f"torch.compile does not work here: {first_line(cause)}. It needs a C++ compiler on a "
            "CPU and Triton on a GPU. Set sampling.compile to false."
        ) from error
    for network in networks_of(pipe):
        for path in dict.fromkeys(site.block for site in sites_of(network.transformer)):
            network.transformer.get_submodule(path).compile(backend=backend)
