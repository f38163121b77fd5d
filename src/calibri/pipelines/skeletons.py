"""The transformer of a pipeline alone: without its weights, or with them and nothing else."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import SD3Transformer2DModel
from torch import nn

from calibri.config import SHIPPED
from calibri.errors import UnsupportedModelError, first_line
from calibri.pipelines.classes import transformer_classes
from calibri.shapes import PIPELINE_PATH

_FOLDER = "transformer"


def load_skeleton(name: str, *, revision: str | None = None) -> nn.Module:
    """Build the transformer of a pipeline without its weights: enough to know its sites.

    Args:
        name: ``"shapes"``, a folder, or a Hugging Face repository id.
        revision: branch, tag or commit of a repository.

    Returns:
        The transformer on the meta device.

    Raises:
        UnsupportedModelError: it cannot be found, or its transformer is not one of diffusers.
    """
    kind, config = _configured(name, revision)
    with torch.device("meta"):
        built: nn.Module = kind.from_config(config)
    return built


def load_transformer(name: str, *, revision: str | None = None) -> nn.Module:
    """Load the transformer of a pipeline onto the CPU in the dtype it is stored in.

    Args:
        name: ``"shapes"``, a folder, or a Hugging Face repository id.
        revision: branch, tag or commit of a repository.

    Raises:
        UnsupportedModelError: it cannot be found, or its transformer is not one of diffusers.
    """
    kind, _ = _configured(name, revision)
    try:
        loaded: nn.Module = kind.from_pretrained(_path(name), subfolder=_FOLDER, revision=revision)
    except (OSError, ValueError) as error:
        raise UnsupportedModelError(
            f"Cannot read the transformer's weights of '{name}': {first_line(error)}. Check the "
            "folder, or download the repository again."
        ) from error
    return loaded


def _configured(name: str, revision: str | None) -> tuple[Any, Any]:
    try:
        # Reading a configuration is the same for every class.
        config = SD3Transformer2DModel.load_config(
            _path(name), subfolder=_FOLDER, revision=revision
        )
        return transformer_classes()[config["_class_name"]], config
    except (OSError, ValueError, KeyError) as error:
        raise UnsupportedModelError(
            f"Cannot read the transformer's configuration of '{name}': {first_line(error)}. Pass a "
            "diffusers folder or a repository id whose transformer is one of `calibri models`."
        ) from error


def _path(name: str) -> str:
    return str(PIPELINE_PATH) if name == SHIPPED else name
