"""The shapes of a pipeline without its weights, so that a run can be planned without a download."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Component:
    """A network of a pipeline.

    Attributes:
        library: ``"diffusers"`` or ``"transformers"``.
        class_name: of the network in that library.
        config: its ``config.json``.
    """

    library: str
    class_name: str
    config: Mapping[str, Any]


@dataclass(frozen=True)
class Geometry:
    """A pipeline without weights.

    Attributes:
        components: role in the pipeline to network.
        text_tokens: tokens of a prompt that the transformer sees, where the pipeline's usual
            number does not hold.
        defaults: configuration that the paper used, by section.
        dtype: of the weights unless configured.
        generations: iterations of the paper's search (spec section 4, Table 5).
        published_hours: granularity to H100-hours of the paper's search, where known.
    """

    components: Mapping[str, Component]
    text_tokens: int | None = None
    defaults: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    dtype: str = "float32"
    generations: int = 200
    published_hours: Mapping[str, float] = field(default_factory=dict)


def clip_text_model(width: int, layers: int, heads: int, name: str = "CLIPTextModel") -> Component:
    """Describe a CLIP text encoder of a width."""
    config = {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "projection_dim": width,
    }
    return Component("transformers", name, config)


# What several published pipelines have, as their configuration files say.
T5_XXL = Component(
    "transformers",
    "T5EncoderModel",
    {
        "d_model": 4096,
        "d_ff": 10240,
        "d_kv": 64,
        "num_layers": 24,
        "num_heads": 64,
        "feed_forward_proj": "gated-gelu",
        "vocab_size": 32128,
    },
)
VAE = Component(
    "diffusers",
    "AutoencoderKL",
    {
        "latent_channels": 16,
        "block_out_channels": [128, 256, 512, 512],
        "layers_per_block": 2,
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "norm_num_groups": 32,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    },
)


def paper_defaults(granularity: str, branches: str = "shared", **guidance: float) -> dict[str, Any]:
    """Return the settings of the paper's search (spec section 3), by section."""
    return {
        "sampling": {"height": 512, "width": 512, "num_inference_steps": 15, **guidance},
        "space": {"granularity": granularity, "branches": branches},
        "rewards": {"objective": "hpsv3", "held_out": ()},
    }
