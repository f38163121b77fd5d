"""FLOPs and parameters of a pipeline, counted from its configuration files alone.

Networks are built on the meta device, where a tensor has a shape and no memory, and a forward is
counted there with torch's ``FlopCounterMode``: one multiply-add is two FLOPs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from huggingface_hub import hf_hub_download
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from calibri.config import SHIPPED, RunConfig
from calibri.errors import ConfigError, UnsupportedModelError
from calibri.pipelines.families.family import Forward
from calibri.pipelines.families.lookup import classes_where, family_of, published_geometries
from calibri.pipelines.geometries import Component, Geometry
from calibri.results import FULL, Fidelity
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
    return Geometry(_components(folder if folder.is_dir() else pipeline, revision))


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


def count_parameters(module: nn.Module) -> int:
    """Count the parameters of a network."""
    return sum(parameter.numel() for parameter in module.parameters())


@dataclass(frozen=True)
class ImageFlops:
    """What one image costs, in FLOPs.

    Attributes:
        forward: one evaluation of the transformer.
        text: encoding one prompt, once.
        decode: the VAE.
    """

    forward: int
    text: int
    decode: int


def image_size(networks: Mapping[str, nn.Module], config: RunConfig) -> tuple[int, int]:
    """Return height and width of an image in pixels, as configured or by the pipeline's default.

    Raises:
        UnsupportedModelError: the transformer's inputs are not known here.
    """
    transformer: Any = networks["transformer"]
    called = forward_of(type(transformer).__name__)
    latents = called.default_size or transformer.config.sample_size
    default = latents * _vae_scale(networks["vae"])
    return config.sampling.height or default, config.sampling.width or default


def _vae_scale(vae: nn.Module) -> int:
    config: Any = vae.config
    if "block_out_channels" in config:
        return int(2 ** (len(config["block_out_channels"]) - 1))
    return int(2 ** len(config["temperal_downsample"]))


def image_flops(
    geometry: Geometry,
    networks: Mapping[str, nn.Module],
    config: RunConfig,
    fidelity: Fidelity = FULL,
) -> ImageFlops:
    """Count one image of a configuration.

    The text encoders are counted as two FLOPs for each weight that is not an embedding and each
    token; the rest is counted operation by operation.

    Args:
        geometry: of the pipeline.
        networks: built on the meta device, by role.
        config: for the size of an image.
        fidelity: what differs in size and text.

    Raises:
        UnsupportedModelError: the transformer's inputs are not known here.
        ConfigError: it makes no images of that size.
    """
    transformer, vae = networks["transformer"], networks["vae"]
    called = forward_of(type(transformer).__name__)
    size = image_size(networks, config)
    height = (fidelity.height or size[0]) // _vae_scale(vae)
    width = (fidelity.width or size[1]) // _vae_scale(vae)
    lengths = _text_lengths(called, fidelity)
    shorter = sum(called.text_lengths.values()) - sum(lengths.values())
    tokens = geometry.text_tokens or called.text_tokens - shorter
    own: Any = transformer.config
    decoder: Any = vae
    channels = decoder.config.get("latent_channels") or decoder.config["z_dim"]
    try:
        with torch.device("meta"):
            inputs = called.inputs(own, height, width, tokens)
            latents = torch.empty(1, channels, *called.decoded(height, width))
            forward = _count(lambda: transformer(**inputs))
            decode = _count(lambda: decoder.decode(latents))
    except (ValueError, RuntimeError) as error:
        raise ConfigError(
            f"{type(transformer).__name__} cannot make an image of {height} x {width} latents: "
            f"{error} Change sampling.height and sampling.width."
        ) from error
    text = sum(
        _text_flops(networks[role], length) for role, length in lengths.items() if role in networks
    )
    return ImageFlops(forward, text, decode)


def _text_lengths(called: Forward, fidelity: Fidelity) -> dict[str, int]:
    """Tokens of a prompt in each text encoder."""
    lengths, most = dict(called.text_lengths), fidelity.max_sequence_length
    if called.cut is not None and most is not None:
        lengths[called.cut] = min(lengths[called.cut], most)
    return lengths


def _count(call: Callable[[], object]) -> int:
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        call()
    return int(counter.get_total_flops())


def _text_flops(encoder: nn.Module, length: int) -> int:
    model: Any = encoder
    embedded = model.get_input_embeddings().weight.numel()
    limit = getattr(model.config, "max_position_embeddings", None) or length
    return 2 * (count_parameters(encoder) - int(embedded)) * min(length, int(limit))
