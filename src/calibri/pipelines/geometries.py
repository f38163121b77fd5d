"""The shapes of the models of the paper, so that a run can be planned without a download.

Each is what the configuration files of the published pipeline say; no weights.
"""

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


def _clip(width: int, layers: int, heads: int, name: str = "CLIPTextModel") -> Component:
    config = {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "projection_dim": width,
    }
    return Component("transformers", name, config)


_T5_XXL = Component(
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
_QWEN25_VL_7B = Component(
    "transformers",
    "Qwen2_5_VLForConditionalGeneration",
    {
        "text_config": {
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "vocab_size": 152064,
        },
        "vision_config": {
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "out_hidden_size": 3584,
        },
    },
)
_VAE = Component(
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
_FLUX_DEV = {
    "patch_size": 1,
    "in_channels": 64,
    "num_layers": 19,
    "num_single_layers": 38,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
    "guidance_embeds": True,
}
_SD35_MEDIUM = {
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 24,
    "attention_head_dim": 64,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 384,
    "dual_attention_layers": list(range(13)),
    "qk_norm": "rms_norm",
}
_QWEN_IMAGE = {
    "patch_size": 2,
    "in_channels": 64,
    "out_channels": 16,
    "num_layers": 60,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 3584,
}


def _defaults(granularity: str, branches: str = "shared", **guidance: float) -> dict[str, Any]:
    # Spec section 3.
    return {
        "sampling": {"height": 512, "width": 512, "num_inference_steps": 15, **guidance},
        "space": {"granularity": granularity, "branches": branches},
        "rewards": {"objective": "hpsv3", "held_out": ()},
    }


# By lower-case name of the repository, without its owner.
GEOMETRIES: dict[str, Geometry] = {
    "flux.1-dev": Geometry(
        components={
            "transformer": Component("diffusers", "FluxTransformer2DModel", _FLUX_DEV),
            "text_encoder": _clip(768, 12, 12),
            "text_encoder_2": _T5_XXL,
            "vae": _VAE,
        },
        dtype="bfloat16",
        defaults=_defaults("block", guidance_scale=3.5),
        published_hours={"block": 32.0},
    ),
    "stable-diffusion-3.5-medium": Geometry(
        components={
            "transformer": Component("diffusers", "SD3Transformer2DModel", _SD35_MEDIUM),
            "text_encoder": _clip(768, 12, 12, "CLIPTextModelWithProjection"),
            "text_encoder_2": _clip(1280, 32, 20, "CLIPTextModelWithProjection"),
            "text_encoder_3": _T5_XXL,
            "vae": _VAE,
        },
        dtype="bfloat16",
        defaults=_defaults("gate", "separate", guidance_scale=7.0),
        generations=2280,
    ),
    "qwen-image": Geometry(
        components={
            "transformer": Component("diffusers", "QwenImageTransformer2DModel", _QWEN_IMAGE),
            "text_encoder": _QWEN25_VL_7B,
            "vae": Component("diffusers", "AutoencoderKLQwenImage", {}),
        },
        dtype="bfloat16",
        defaults=_defaults("gate", "separate", true_cfg_scale=4.0),
        generations=960,
    ),
}
SHORT_NAMES = {"sd3.5-medium": "stable-diffusion-3.5-medium"}
