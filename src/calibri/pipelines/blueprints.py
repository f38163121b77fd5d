"""A pipeline from its configuration files alone: its networks have shapes and no weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from huggingface_hub import hf_hub_download
from torch import nn

from calibri.config import SHIPPED
from calibri.errors import UnsupportedModelError
from calibri.pipelines.families.family import Forward
from calibri.pipelines.families.lookup import classes_where, family_of, published_geometries
from calibri.pipelines.geometries import Component, Geometry
from calibri.pipelines.names import place_of
from calibri.shapes import PIPELINE_PATH

_LIBRARIES = {"diffusers": diffusers, "transformers": transformers}
_MAX_CONFIG_BYTES = 2**20
# The shipped third text encoder pools its 12 tokens into 2, behind the 12 of the others.
_SHIPPED_TEXT_TOKENS = 14


def find_geometry(pipeline: str, revision: str | None = None) -> Geometry:
    """Find the configuration of a pipeline's networks; weights are neither read nor downloaded.

    Args:
        pipeline: ``"flux.1-dev"``, ``"sd3.5-medium"`` or ``"qwen-image"``, which are known here,
            also under the names of their repositories; ``"shapes"``; a folder; or a repository,
            of which only ``config.json`` files are downloaded.
        revision: branch, tag or commit of a repository.

    Raises:
        UnsupportedModelError: there is no such pipeline, or it is not one of networks of diffusers
            and transformers.
    """
    if pipeline == SHIPPED:
        return Geometry(_components(PIPELINE_PATH, None), text_tokens=_SHIPPED_TEXT_TOKENS)
    name = pipeline.rsplit("/", 1)[-1].lower()
    folder = Path(pipeline)
    if not folder.is_dir() and name in published_geometries():
        return published_geometries()[name]
    place = place_of(pipeline)
    return Geometry(_components(folder if folder.is_dir() else place, revision))


def is_published(pipeline: str) -> bool:
    """Whether a name is that of a model whose geometry is known here, and no folder or repository.

    Args:
        pipeline: for example ``"flux.1-dev"``.
    """
    return pipeline.lower() in published_geometries() and not Path(pipeline).is_dir()


def _components(source: Path | str, revision: str | None) -> dict[str, Component]:
    index = _json(source, "model_index.json", revision)
    found = {
        role: (value[0], value[1])
        for role, value in index.items()
        if isinstance(value, list) and len(value) == 2 and value[0] in _LIBRARIES
    }
    if missing := {"transformer", "vae"} - set(found):
        raise UnsupportedModelError(
            f"model_index.json of '{source}' has no {' and no '.join(sorted(missing))} of "
            "diffusers or transformers. Calibri works on Diffusion Transformers such as FLUX."
        )
    return {
        role: Component(library, name, _json(source, f"{role}/config.json", revision))
        for role, (library, name) in found.items()
        if role in ("transformer", "vae") or role.startswith("text_encoder")
    }


def _json(source: Path | str, name: str, revision: str | None) -> dict[str, Any]:
    try:
        path = (
            source / name
            if isinstance(source, Path)
            else Path(hf_hub_download(source, name, revision=revision))
        )
        with path.open("rb") as file:
            content = json.loads(file.read(_MAX_CONFIG_BYTES))
    except (OSError, ValueError) as error:
        raise UnsupportedModelError(
            f"Cannot read {name} of '{source}': {str(error).strip().splitlines()[0]} Give one of "
            f"{', '.join(published_geometries())}, '{SHIPPED}', a diffusers folder or a "
            "repository."
        ) from error
    if not isinstance(content, dict):
        raise UnsupportedModelError(f"{name} of '{source}' does not hold keys and values.")
    return content


def build_networks(geometry: Geometry) -> dict[str, nn.Module]:
    """Build the networks of a pipeline on the meta device, by role.

    Raises:
        UnsupportedModelError: see ``build``.
    """
    return {role: build(component) for role, component in geometry.components.items()}


def build(component: Component) -> nn.Module:
    """Build a network on the meta device.

    Raises:
        UnsupportedModelError: the installed library has no network of that name, or cannot build
            it from that configuration.
    """
    name, library = component.class_name, component.library
    network = getattr(_LIBRARIES[library], name, None)
    if not (isinstance(network, type) and issubclass(network, nn.Module)):
        raise UnsupportedModelError(
            f"The installed {library} has no network {name}. Update it, or use another pipeline."
        )
    made: Any = network
    try:
        with torch.device("meta"):
            if library == "diffusers":
                module: nn.Module = made.from_config(dict(component.config))
            else:
                module = made(made.config_class(**component.config))
    except (TypeError, ValueError, KeyError, AttributeError, NotImplementedError) as error:
        raise UnsupportedModelError(
            f"{name} cannot be built from its configuration: {error}."
        ) from error
    return module.eval()


def forward_of(class_name: str) -> Forward:
    """Return how a transformer class is called.

    Raises:
        UnsupportedModelError: it is not one whose inputs are known here.
    """
    forward = family_of(class_name).forward
    if forward is None:
        raise UnsupportedModelError(
            f"FLOPs of {class_name} cannot be counted from its configuration; those of "
            f"{', '.join(classes_where(lambda row: row.forward))} can. `calibri calibrate "
            "--dry-run` counts the images of a run on any pipeline."
        )
    return forward
