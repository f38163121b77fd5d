"""The transformers of a pipeline, or all of it, without weights."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
import transformers
from diffusers import SD3Transformer2DModel
from torch import nn

from calibri.config import SHIPPED
from calibri.errors import UnsupportedModelError, first_line
from calibri.pipelines.classes import transformer_classes
from calibri.pipelines.loading import load_pipeline
from calibri.pipelines.modular import (
    MODULAR_INDEX,
    PLAIN_INDEX,
    is_modular_index,
    place_of_part,
    read_index,
)
from calibri.pipelines.names import place_of
from calibri.pipelines.networks import TRANSFORMERS, Network, networks_of

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
    return _skeleton(name, revision)


def _skeleton(name: str, revision: str | None, folder: str = _FOLDER) -> nn.Module:
    kind, config = _configured(name, revision, folder)
    with torch.device("meta"):
        built: nn.Module = kind.from_config(config)
    return built


def load_skeletons(name: str, *, revision: str | None = None) -> Sequence[Network]:
    """Build the transformers of a pipeline without their weights.

    Args:
        name: ``"shapes"``, a folder, or a Hugging Face repository id; or the folder of a
            transformer alone.
        revision: branch, tag or commit of a repository.

    Returns:
        As ``networks_of`` lists those of the loaded pipeline, on the meta device.

    Raises:
        UnsupportedModelError: see ``load_skeleton``.
    """
    indices = [(Path(name) / index).is_file() for index in (PLAIN_INDEX, MODULAR_INDEX)]
    if (Path(name) / "config.json").is_file() and not any(indices):
        return networks_of(_skeleton(name, revision, ""))
    index = _index(name, revision)
    parts = {}
    for part in TRANSFORMERS:
        place = place_of_part(name, revision, part, index)
        if place is not None:
            parts[part] = _skeleton(*place)
    kind = getattr(diffusers, str(index.get("_class_name")), object)
    ratio = inspect.signature(kind).parameters.get("boundary_ratio")
    default = 1 if ratio is None else ratio.default
    config = SimpleNamespace(boundary_ratio=index.get("boundary_ratio", default))
    pipe: Any = SimpleNamespace(config=config, components=parts, **parts)
    return networks_of(pipe)


def load_pipeline_skeleton(name: str, *, revision: str | None = None) -> Any:
    """Load a pipeline without weights: enough to know its sites and how it is called.

    Args:
        name: ``"shapes"``, a folder, or a Hugging Face repository id.
        revision: branch, tag or commit of a repository.

    Returns:
        The pipeline, its models on the meta device; with weights and on the CPU where a part is
        neither of diffusers nor of transformers.

    Raises:
        UnsupportedModelError: nothing could be read under that name, or it has no transformer.
    """
    index = _index(name, revision)
    if is_modular_index(index):
        return load_pipeline(name, revision=revision, device="cpu")
    kind: Any = getattr(diffusers, str(index.get("_class_name")), None)
    try:
        parts = {
            part: _component(entry, name, revision, part) if _is_part(entry) else entry
            for part, entry in index.items()
        }
        known = inspect.signature(kind).parameters if kind is not None else {}
        pipe = kind(**{part: parts.get(part, known[part].default) for part in known})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return load_pipeline(name, revision=revision, device="cpu")
    networks_of(pipe)
    return pipe


def _is_part(entry: Any) -> bool:
    """Tell a part of a pipeline from a setting: a library and a class of it, or no two."""
    if not isinstance(entry, list | tuple) or len(entry) != 2:
        return False
    return all(word is None or isinstance(word, str) for word in entry)


def _component(entry: Any, name: str, revision: str | None, part: str) -> Any:
    library, class_name = entry
    if library is None:
        return None
    kind = getattr({"diffusers": diffusers, "transformers": transformers}[library], class_name)
    place = {"subfolder": part, "revision": revision}
    if not issubclass(kind, nn.Module):
        return kind.from_pretrained(place_of(name), **place)
    if issubclass(kind, transformers.PreTrainedModel):
        build, config = kind, kind.config_class.from_pretrained(place_of(name), **place)
    else:
        build, config = kind.from_config, kind.load_config(place_of(name), **place)
    with torch.device("meta"):
        return build(config)


def _index(name: str, revision: str | None) -> dict[str, Any]:
    try:
        return read_index(name, revision)
    except (OSError, ValueError) as error:
        raise UnsupportedModelError(
            f"Cannot load a pipeline from '{name}': {first_line(error)}. Pass a folder with "
            f"model_index.json, a repository id, or '{SHIPPED}'."
        ) from error


def _configured(name: str, revision: str | None, folder: str = _FOLDER) -> tuple[Any, Any]:
    try:
        # Reading a configuration is the same for every class.
        config = SD3Transformer2DModel.load_config(
            place_of(name), subfolder=folder or None, revision=revision
        )
        return transformer_classes()[config["_class_name"]], config
    except (OSError, ValueError, KeyError) as error:
        raise UnsupportedModelError(
            f"Cannot read the transformer's configuration of '{name}': {first_line(error)}. Pass a "
            "diffusers folder or a repository id whose transformer is one of `calibri models`."
        ) from error
