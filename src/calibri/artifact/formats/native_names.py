"""What ComfyUI calls the weights that a calibration scales: its model classes keep native names.

A row holds for classes of diffusers that are built alike. Its left side is a path in diffusers and
its right side the path in ComfyUI's class, ``*`` a number that both have. Paths that are no left
side are called alike in both, where the row says so.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from calibri.errors import UnsupportedModelError

_OUTPUT = {"proj_out": "final_layer.linear"}


def _flux(image_mlp: str, text_mlp: str, single: str) -> dict[str, str]:
    return {
        "transformer_blocks.*.attn.to_out.0": "double_blocks.*.img_attn.proj",
        "transformer_blocks.*.attn.to_add_out": "double_blocks.*.txt_attn.proj",
        f"transformer_blocks.*.{image_mlp}": "double_blocks.*.img_mlp.2",
        f"transformer_blocks.*.{text_mlp}": "double_blocks.*.txt_mlp.2",
        f"single_transformer_blocks.*.{single}": "single_blocks.*.linear2",
        **_OUTPUT,
    }


@dataclass(frozen=True)
class NativeNames:
    """The names in ComfyUI of a family.

    Attributes:
        classes: in diffusers.
        renamed: pattern of a path in diffusers to that in ComfyUI.
        rest_alike: whether all other paths are the same in both.
        holds: for which configurations, where one class serves models that ComfyUI has two of.
    """

    classes: tuple[str, ...]
    renamed: Mapping[str, str] = field(default_factory=dict)
    rest_alike: bool = False
    holds: Callable[[Any], bool] = lambda config: True

    def of(self, path: str) -> str:
        """Return the path in ComfyUI of a module or parameter; empty when it is not known."""
        for pattern, native in self.renamed.items():
            if found := re.fullmatch(_expression(pattern), path):
                return native.replace("*", "{}").format(*found.groups())
        return path if self.rest_alike else ""


def _expression(pattern: str) -> str:
    return re.escape(pattern).replace(r"\*", r"(\d+)")


NATIVE_NAMES = (
    NativeNames(
        (
            "FluxTransformer2DModel",
            "ChromaTransformer2DModel",
            "HunyuanVideoTransformer3DModel",
            "HunyuanVideo15Transformer3DModel",
            "HunyuanImageTransformer2DModel",
            "LongCatImageTransformer2DModel",
        ),
        _flux("ff.net.2", "ff_context.net.2", "proj_out"),
    ),
    NativeNames(
        ("Flux2Transformer2DModel",),
        _flux("ff.linear_out", "ff_context.linear_out", "attn.to_out"),
    ),
    NativeNames(
        ("OvisImageTransformer2DModel",),
        _flux("ff.net.2", "ff_context.net.2", "proj_out")
        | {
            "transformer_blocks.*.ff.net.2": "double_blocks.*.img_mlp.down_proj",
            "transformer_blocks.*.ff_context.net.2": "double_blocks.*.txt_mlp.down_proj",
        },
    ),
    NativeNames(
        ("SD3Transformer2DModel",),
        {
            "transformer_blocks.*.attn.to_out.0": "joint_blocks.*.x_block.attn.proj",
            "transformer_blocks.*.attn.to_add_out": "joint_blocks.*.context_block.attn.proj",
            "transformer_blocks.*.attn2.to_out.0": "joint_blocks.*.x_block.attn2.proj",
            "transformer_blocks.*.ff.net.2": "joint_blocks.*.x_block.mlp.fc2",
            "transformer_blocks.*.ff_context.net.2": "joint_blocks.*.context_block.mlp.fc2",
            **_OUTPUT,
        },
    ),
    NativeNames(
        (
            "QwenImageTransformer2DModel",
            "QwenImage21Transformer2DModel",
            "HiDreamImageTransformer2DModel",
            "LTXVideoTransformer3DModel",
            "LTX2VideoTransformer3DModel",
            "ErnieImageTransformer2DModel",
            "Ideogram4Transformer2DModel",
            "JoyImageEditTransformer3DModel",
            "JoyImageEditPlusTransformer3DModel",
            "Kandinsky5Transformer3DModel",
        ),
        rest_alike=True,
    ),
    NativeNames(
        (
            "WanTransformer3DModel",
            "WanVACETransformer3DModel",
            "WanAnimateTransformer3DModel",
            "SkyReelsV2Transformer3DModel",
            "ChronoEditTransformer3DModel",
        ),
        {
            "blocks.*.attn1.to_out.0": "blocks.*.self_attn.o",
            "blocks.*.attn2.to_out.0": "blocks.*.cross_attn.o",
            "blocks.*.ffn.net.2": "blocks.*.ffn.2",
            "proj_out": "head.head",
        },
    ),
    NativeNames(
        ("WanAnimate2Transformer3DModel",),
        {
            "blocks.*.self_attn.to_out.0": "blocks.*.self_attn.o",
            "blocks.*.cross_attn.to_out.0": "blocks.*.cross_attn.o",
            "blocks.*.ffn.2": "blocks.*.ffn.2",
            "head.head": "head.head",
        },
    ),
    NativeNames(
        ("ZImageTransformer2DModel",),
        {
            "layers.*.attention_norm2": "layers.*.attention_norm2",
            "layers.*.ffn_norm2": "layers.*.ffn_norm2",
            "all_final_layer.2-1.linear": "final_layer.linear",
        },
    ),
    NativeNames(
        ("Lumina2Transformer2DModel",),
        {
            "layers.*.norm2": "layers.*.attention_norm2",
            "layers.*.ffn_norm2": "layers.*.ffn_norm2",
            "norm_out.linear_2": "final_layer.linear",
        },
    ),
    NativeNames(
        ("CosmosTransformer3DModel",),
        {
            "transformer_blocks.*.attn1.to_out.0": "blocks.*.self_attn.output_proj",
            "transformer_blocks.*.attn2.to_out.0": "blocks.*.cross_attn.output_proj",
            "transformer_blocks.*.ff.net.2": "blocks.*.mlp.layer2",
            **_OUTPUT,
        },
        holds=lambda config: config.extra_pos_embed_type is None,  # Cosmos 2, 2.5
    ),
    NativeNames(
        ("CosmosTransformer3DModel",),
        {
            "transformer_blocks.*.attn1.to_out.0": "blocks.block*.blocks.0.block.attn.to_out.0",
            "transformer_blocks.*.attn2.to_out.0": "blocks.block*.blocks.1.block.attn.to_out.0",
            "transformer_blocks.*.ff.net.2": "blocks.block*.blocks.2.block.layer2",
            **_OUTPUT,
        },
        holds=lambda config: config.extra_pos_embed_type is not None,  # Cosmos 1
    ),
    NativeNames(
        ("AuraFlowTransformer2DModel",),
        {
            "joint_transformer_blocks.*.attn.to_out.0": "double_layers.*.attn.w2o",
            "joint_transformer_blocks.*.attn.to_add_out": "double_layers.*.attn.w1o",
            "joint_transformer_blocks.*.ff.out_projection": "double_layers.*.mlpX.c_proj",
            "joint_transformer_blocks.*.ff_context.out_projection": "double_layers.*.mlpC.c_proj",
            "single_transformer_blocks.*.attn.to_out.0": "single_layers.*.attn.w1o",
            "single_transformer_blocks.*.ff.out_projection": "single_layers.*.mlp.c_proj",
            "proj_out": "final_linear",
        },
    ),
    NativeNames(
        ("PixArtTransformer2DModel",),
        {
            "transformer_blocks.*.attn1.to_out.0": "blocks.*.attn.proj",
            "transformer_blocks.*.attn2.to_out.0": "blocks.*.cross_attn.proj",
            "transformer_blocks.*.ff.net.2": "blocks.*.mlp.fc2",
            **_OUTPUT,
        },
    ),
    NativeNames(
        ("HunyuanDiT2DModel",),
        {
            "blocks.*.attn1.to_out.0": "blocks.*.attn1.out_proj",
            "blocks.*.attn2.to_out.0": "blocks.*.attn2.out_proj",
            "blocks.*.ff.net.2": "blocks.*.mlp.fc2",
            **_OUTPUT,
        },
    ),
    NativeNames(
        ("Krea2Transformer2DModel",),
        {
            "transformer_blocks.*.attn.to_out.0": "blocks.*.attn.wo",
            "transformer_blocks.*.ff.down": "blocks.*.mlp.down",
            "final_layer.linear": "last.linear",
        },
    ),
    NativeNames(
        ("StableAudioDiTModel",),
        {
            "transformer_blocks.*.attn1.to_out.0": "transformer.layers.*.self_attn.to_out",
            "transformer_blocks.*.attn2.to_out.0": "transformer.layers.*.cross_attn.to_out",
            "transformer_blocks.*.ff.net.2": "transformer.layers.*.ff.ff.2",
            "proj_out": "transformer.project_out",
        },
    ),
    NativeNames(
        ("AceStepTransformer1DModel",),
        {
            "layers.*.self_attn.to_out.0": "decoder.layers.*.self_attn.o_proj",
            "layers.*.cross_attn.to_out.0": "decoder.layers.*.cross_attn.o_proj",
            "layers.*.mlp.down_proj": "decoder.layers.*.mlp.down_proj",
            "proj_out_conv": "decoder.proj_out.1",
        },
    ),
)


def known_classes() -> tuple[str, ...]:
    """List the classes of diffusers whose names in ComfyUI are known."""
    return tuple(dict.fromkeys(name for row in NATIVE_NAMES for name in row.classes))


def native_names(transformer: nn.Module) -> NativeNames:
    """Find the names in ComfyUI of a transformer of diffusers.

    Raises:
        UnsupportedModelError: they are not known.
    """
    name = type(transformer).__name__
    for row in NATIVE_NAMES:
        if name in row.classes and row.holds(transformer.config):
            return row
    raise UnsupportedModelError(
        f"What ComfyUI calls the weights of a {name} is not known, only those of "
        f"{', '.join(known_classes())}. Save the whole model with `calibri fuse`."
    )
