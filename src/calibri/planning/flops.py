"""FLOPs and parameters of a pipeline, counted without weights.

A forward of networks on the meta device, where a tensor has a shape and no memory, is counted with
torch's ``FlopCounterMode``: one multiply-add is two FLOPs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from calibri.config import RunConfig
from calibri.errors import ConfigError
from calibri.pipelines import Geometry, forward_of
from calibri.results import FULL, Fidelity


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
    transformer = networks["transformer"]
    decoder: Any = networks["vae"]
    lengths = forward_of(type(transformer).__name__).lengths(fidelity.max_sequence_length)
    with shapes_explained(transformer):
        inputs, latents = meta_inputs(geometry, networks, config, fidelity)
        with torch.device("meta"):
            forward = _count(lambda: transformer(**inputs))
            decode = _count(lambda: decoder.decode(latents))
    text = sum(
        _text_flops(networks[role], length) for role, length in lengths.items() if role in networks
    )
    return ImageFlops(forward, text, decode)


def meta_inputs(
    geometry: Geometry,
    networks: Mapping[str, nn.Module],
    config: RunConfig,
    fidelity: Fidelity = FULL,
) -> tuple[dict[str, Any], Tensor]:
    """Make inputs without values of one image: the transformer's arguments, and final latents.

    Arguments as of ``image_flops``.
    """
    transformer: Any = networks["transformer"]
    vae: Any = networks["vae"]
    called = forward_of(type(transformer).__name__)
    size = image_size(networks, config)
    height = (fidelity.height or size[0]) // _vae_scale(vae)
    width = (fidelity.width or size[1]) // _vae_scale(vae)
    lengths = called.lengths(fidelity.max_sequence_length)
    shorter = sum(called.text_lengths.values()) - sum(lengths.values())
    tokens = geometry.text_tokens or called.text_tokens - shorter
    channels = vae.config.get("latent_channels") or vae.config["z_dim"]
    with torch.device("meta"):
        inputs = called.inputs(transformer.config, height, width, tokens)
        return inputs, torch.empty(1, channels, *called.decoded(height, width))


@contextmanager
def shapes_explained(transformer: nn.Module) -> Iterator[None]:
    """Say what to change where a transformer cannot run on inputs of a size."""
    try:
        yield
    except (ValueError, RuntimeError) as error:
        raise ConfigError(
            f"{type(transformer).__name__} cannot make an image of this size: {error} Change "
            "sampling.height and sampling.width."
        ) from error


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
