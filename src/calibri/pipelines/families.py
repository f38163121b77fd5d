"""The table: which outputs of which block class are branches of the residual stream.

Keyed by the class of the block, so every model built from a known block is covered without a line
of model code. One row reads ``layer: path[index]@stream -> fold``, branches separated by commas:

* ``@v`` visual, ``@t`` text, ``@j`` both in one sequence, ``@a`` audio; ``~`` instead of ``@``
  marks a branch that the model adds without a gate of its own.
* the fold names the weights that take the scale: ``a + b`` folds into both, ``experts.*.w2`` into
  every match, ``linear[2/6]`` into the third of six equal parts of the rows, ``a | b`` into the
  first that this block has, and ``!reason`` says why there are none.

A branch whose module is None in a particular block is dropped, and so are text branches of a block
that discards its text stream (``context_pre_only``).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from calibri.pipelines.sites.site import Stream

_STREAMS: dict[str, Stream] = {"v": "visual", "t": "text", "j": "joint", "a": "audio"}

NO_FOLD: dict[str, str] = {
    "tanh": "its gate passes through tanh inside a norm without weights, so no weight is linear "
    "in the scale",
}

_ATTN = "attn: attn[0]@v -> attn.to_out.0, attn[1]@t -> attn.to_add_out"
_ATTN2 = "attn2: attn2@v -> attn2.to_out.0"
_CROSS = "attn2: attn2~v -> attn2.to_out.0"
_MLP = "mlp: ff@v -> ff.net.2, ff_context@t -> ff_context.net.2"
_IMG_MLP = "mlp: img_mlp@v -> img_mlp.net.2, txt_mlp@t -> txt_mlp.net.2"

_DOUBLE = (_ATTN, _MLP)
# A fused single block joins attention and MLP in one projection under one gate.
_SINGLE = ("attn+mlp: proj_out@j -> proj_out",)
_JOY = (
    "attn: attn[0]@v -> attn.img_attn_proj, attn[1]@t -> attn.txt_attn_proj",
    _IMG_MLP,
)
_CROSSED = ("attn: attn1@v -> attn1.to_out.0", _CROSS, "mlp: ff@v -> ff.net.2")
_UNGATED = ("attn: attn1~v -> attn1.to_out.0", _CROSS, "mlp: ff~v -> ff.net.2")
_WAN = ("attn: attn1@v -> attn1.to_out.0", _CROSS, "mlp: ffn@v -> ffn.net.2")
# Post-norm blocks: scaling the sublayer is undone by the norm that follows, so the norm's output
# is the branch. Its weight is linear in the scale, the rows of its tanh gate are not.
_POST_NORM = ("attn: norm2@j -> norm2", "mlp: ffn_norm2@j -> ffn_norm2")
_SANDWICH = (
    "attn: attention_norm2@j -> attention_norm2",
    "cross_attn: cross_attn_norm2@j -> cross_attn_norm2",
    "mlp: ffn_norm2@j -> ffn_norm2",
)
# One linear serves both streams, so the gates are the sites: the norms return them, and the rows of
# their modulation linear that make them take the fold.
_COGVIDEO = (
    "attn: norm1[2]@v -> norm1.linear[2/6], norm1[3]@t -> norm1.linear[5/6]",
    "mlp: norm2[2]@v -> norm2.linear[2/6], norm2[3]@t -> norm2.linear[5/6]",
)
_COGVIEW3 = (
    "attn: norm1[1]@v -> norm1.linear[2/12], norm1[6]@t -> norm1.linear[8/12]",
    "mlp: norm1[4]@v -> norm1.linear[5/12], norm1[9]@t -> norm1.linear[11/12]",
)
_COGVIEW4 = (
    "attn: norm1[1]@v -> norm1.linear[4/12], norm1[6]@t -> norm1.linear[5/12]",
    "mlp: norm1[4]@v -> norm1.linear[10/12], norm1[9]@t -> norm1.linear[11/12]",
)
_EXPERTS = "ff_i.experts.*.w2 + ff_i.shared_experts.w2 | ff_i.w2"

BLOCKS: dict[str, tuple[str, ...]] = {
    # SD3: the second visual attention of SD3.5 is a layer of its own (61 layers in SD3.5-medium).
    "JointTransformerBlock": (_ATTN, _ATTN2, _MLP),
    "SD3SingleTransformerBlock": ("attn: attn@v -> attn.to_out.0", "mlp: ff@v -> ff.net.2"),
    "FluxTransformerBlock": _DOUBLE,
    "FluxSingleTransformerBlock": _SINGLE,
    "BriaTransformerBlock": _DOUBLE,
    "BriaSingleTransformerBlock": _SINGLE,
    "BriaFiboTransformerBlock": _DOUBLE,
    "BriaFiboSingleTransformerBlock": _SINGLE,
    "LongCatImageTransformerBlock": _DOUBLE,
    "LongCatImageSingleTransformerBlock": _SINGLE,
    "OvisImageTransformerBlock": _DOUBLE,
    "OvisImageSingleTransformerBlock": _SINGLE,
    "ChromaTransformerBlock": _DOUBLE,
    "ChromaSingleTransformerBlock": _SINGLE,
    "HunyuanVideoTransformerBlock": _DOUBLE,
    "HunyuanVideoSingleTransformerBlock": _SINGLE,
    "HunyuanVideoTokenReplaceTransformerBlock": _DOUBLE,
    "HunyuanVideoTokenReplaceSingleTransformerBlock": _SINGLE,
    "HunyuanVideo15TransformerBlock": _DOUBLE,
    "HunyuanImageTransformerBlock": _DOUBLE,
    "HunyuanImageSingleTransformerBlock": _SINGLE,
    # The attention output is also the query of a cross-attention, so only its gate scales the
    # branch alone.
    "MotifVideoTransformerBlock": (
        "attn: norm1[1]@v -> norm1.linear[2/6], norm1_context[1]@t -> norm1_context.linear[2/6]",
        "cross_attn: cross_attn~v -> cross_attn.to_out.0",
        _MLP,
    ),
    "MotifVideoSingleTransformerBlock": _SINGLE,
    "Flux2TransformerBlock": (
        _ATTN,
        "mlp: ff@v -> ff.linear_out, ff_context@t -> ff_context.linear_out",
    ),
    "Flux2SingleTransformerBlock": ("attn+mlp: attn@j -> attn.to_out",),
    # One class for images and for text, told apart by TEXT_CONTAINERS.
    "Flux3ModeTransformerBlock": ("attn: attn@v -> attn.to_out.0", "mlp: ff@v -> ff.linear_out"),
    "Flux3SingleTransformerBlock": ("attn: attn@j -> attn.to_out.0", "mlp: ff@j -> ff.linear_out"),
    # The MLP adds to the block's input, so attention reaches the stream only through the MLP.
    "AuraFlowJointTransformerBlock": (
        _ATTN,
        "mlp: ff@v -> ff.out_projection, ff_context@t -> ff_context.out_projection",
    ),
    "AuraFlowSingleTransformerBlock": (
        "attn: attn@j -> attn.to_out.0",
        "mlp: ff@j -> ff.out_projection",
    ),
    "QwenImageTransformerBlock": (_ATTN, _IMG_MLP),
    "JoyImageTransformerBlock": _JOY,
    "JoyImageEditPlusTransformerBlock": _JOY,
    "HiDreamImageTransformerBlock": (
        "attn: attn1[0]@v -> attn1.to_out, attn1[1]@t -> attn1.to_out_t",
        f"mlp: ff_i@v -> {_EXPERTS}, ff_t@t -> ff_t.w2",
    ),
    "HiDreamImageSingleTransformerBlock": (
        "attn: attn1@j -> attn1.to_out",
        f"mlp: ff_i@j -> {_EXPERTS}",
    ),
    "LTX2VideoTransformerBlock": (
        "attn: attn1@v -> attn1.to_out.0, audio_attn1@a -> audio_attn1.to_out.0",
        "attn2: attn2~v -> attn2.to_out.0, audio_attn2~a -> audio_attn2.to_out.0",
        "cross_modal: audio_to_video_attn@v -> audio_to_video_attn.to_out.0, "
        "video_to_audio_attn@a -> video_to_audio_attn.to_out.0",
        "mlp: ff@v -> ff.net.2, audio_ff@a -> audio_ff.net.2",
    ),
    # Built like LTX2, but its forward runs the video stream alone.
    "SanaWMLTX2RefinerTransformerBlock": _CROSSED,
    "Kandinsky6FusedTransformerDecoderBlock": (
        "attn: video_dec_block.self_attention@v -> video_dec_block.self_attention.out_layer, "
        "audio_dec_block.self_attention@a -> audio_dec_block.self_attention.out_layer",
        "attn2: video_dec_block.cross_attention@v -> video_dec_block.cross_attention.out_layer, "
        "audio_dec_block.cross_attention@a -> audio_dec_block.cross_attention.out_layer",
        "cross_modal: va_cross_attention@v -> va_cross_attention.out_layer, "
        "av_cross_attention@a -> av_cross_attention.out_layer",
        "mlp: video_dec_block.feed_forward@v -> video_dec_block.feed_forward.net.2, "
        "audio_dec_block.feed_forward@a -> audio_dec_block.feed_forward.net.2",
    ),
    "Cosmos3VLTextMoTDecoderLayer": (
        "attn: self_attn[0]~t -> self_attn.to_out, self_attn[1]~v -> self_attn.to_add_out",
        "mlp: mlp~t -> mlp.down_proj, mlp_moe_gen~v -> mlp_moe_gen.down_proj",
    ),
    "CogVideoXBlock": _COGVIDEO,
    "ConsisIDBlock": _COGVIDEO,
    "EasyAnimateTransformerBlock": _COGVIDEO,
    "CogView3PlusTransformerBlock": _COGVIEW3,
    "CogView4TransformerBlock": _COGVIEW4,
    "GlmImageTransformerBlock": _COGVIEW4,
    "Lumina2TransformerBlock": _POST_NORM,
    "LuminaNextDiTBlock": ("attn: norm2@v -> norm2", "mlp: ffn_norm2@v -> ffn_norm2"),
    "ZImageTransformerBlock": _SANDWICH,
    "Ideogram4TransformerBlock": _SANDWICH,
    "BriaFibo2TransformerBlock": _SANDWICH,
    "MochiTransformerBlock": (
        "attn: norm2@v -> !tanh, norm2_context@t -> !tanh",
        "mlp: norm4@v -> !tanh, norm4_context@t -> !tanh",
    ),
    "BasicTransformerBlock": _CROSSED,
    "BasicTransformerBlock[layer_norm]": _UNGATED,
    "AllegroTransformerBlock": _CROSSED,
    "LTXVideoTransformerBlock": _CROSSED,
    "SanaTransformerBlock": (*_CROSSED[:2], "mlp: ff@v -> ff.conv_point"),
    # The temporal convolution adds a linear map of the point convolution to itself.
    "SanaVideoTransformerBlock": (*_CROSSED[:2], "mlp: ff@v -> ff.conv_point"),
    "SanaVideoMSCamCtrlBlock": (
        "attn: attn@v -> attn.proj",
        "attn2: cross_attn~v -> cross_attn.proj",
        "mlp: mlp@v -> mlp.point_conv.conv",
    ),
    "WanTransformerBlock": _WAN,
    "WanVACETransformerBlock": _WAN,
    "SkyReelsV2TransformerBlock": _WAN,
    "AnyFlowTransformerBlock": _WAN,
    "HeliosTransformerBlock": _WAN,
    "WanAnimate2TransformerBlock": (
        "attn: self_attn@v -> self_attn.to_out.0",
        "attn2: cross_attn~v -> cross_attn.to_out.0",
        "mlp: ffn@v -> ffn.2",
    ),
    "CosmosTransformerBlock": (*_CROSSED[:1], _ATTN2, *_CROSSED[2:]),
    "HunyuanDiTBlock": _UNGATED,
    "StableAudioDiTBlock": _UNGATED,
    "StableAudio3DiTBlock": (
        "attn: self_attn@a -> self_attn.to_out",
        "attn2: cross_attn~a -> cross_attn.to_out",
        "mlp: ff@a -> ff.proj_out",
    ),
    "AceStepTransformerBlock": (
        "attn: self_attn@a -> self_attn.to_out.0",
        "attn2: cross_attn~a -> cross_attn.to_out.0",
        "mlp: mlp@a -> mlp.down_proj",
    ),
    "AudioDiTBlock": (
        "attn: self_attn@a -> self_attn.to_out.0",
        "attn2: cross_attn~a -> cross_attn.to_out.0",
        "mlp: ffn@a -> ffn.ff.3",
    ),
    "MiniMaxMusic3TransformerBlock": ("attn: attn~a -> attn.to_out.0", "mlp: ff_out~a -> ff_out"),
    "MiniMaxH3TransformerBlock": ("attn: attn@j -> attn.to_out.0", "mlp: ff@j -> ff.net.2"),
    "Kandinsky5TransformerDecoderBlock": (
        "attn: self_attention@v -> self_attention.out_layer",
        "attn2: cross_attention@v -> cross_attention.out_layer",
        "mlp: feed_forward@v -> feed_forward.out_layer",
    ),
    "Kandinsky6SRTransformerBlock": (
        "attn: self_attention@v -> self_attention.out_layer",
        "mlp: feed_forward@v -> feed_forward.net.2",
    ),
    "OmniGenBlock": ("attn: self_attn~j -> self_attn.to_out.0", "mlp: mlp~j -> mlp.down_proj"),
    "QwenImage21TransformerBlock": (
        "attn: attn@j -> attn.to_out.0",
        "mlp: img_mlp@j -> img_mlp.out",
    ),
    "ErnieImageSharedAdaLNBlock": (
        "attn: self_attention@j -> self_attention.to_out.0",
        "mlp: mlp@j -> mlp.linear_fc2",
    ),
    "Krea2TransformerBlock": ("attn: attn@j -> attn.to_out.0", "mlp: ff@j -> ff.down"),
    # The MLP is written inline in the block, so its last linear is the branch.
    "PRXBlock": ("attn: attention@v -> attention.to_out.0", "mlp: down_proj@v -> down_proj"),
    "NucleusMoEImageTransformerBlock": (
        "attn: attn@v -> attn.to_out.0",
        "mlp: img_mlp@v -> img_mlp.net.2 | img_mlp.experts.down_proj + img_mlp.shared_expert.net.2",
    ),
}

_SPLIT = "discovery finds the outputs of linears that serve both streams; the gates tell them apart"
# Blocks in which the table knows better than discovery, and why.
REFINED: dict[str, str] = {
    "AuraFlowJointTransformerBlock": "attention acts through the MLP alone, which hides it when "
    "the MLP is off",
    "AuraFlowSingleTransformerBlock": "attention acts through the MLP alone, which hides it when "
    "the MLP is off",
    "CogVideoXBlock": _SPLIT,
    "ConsisIDBlock": _SPLIT,
    "EasyAnimateTransformerBlock": _SPLIT,
    "CogView3PlusTransformerBlock": _SPLIT,
    "CogView4TransformerBlock": _SPLIT,
    "GlmImageTransformerBlock": _SPLIT,
    "MotifVideoTransformerBlock": "the attention output is also a query; its gate is not",
    "SanaVideoMSCamCtrlBlock": "the ray embedding adds to the stream, but is a condition",
    "StableAudio3DiTBlock": "the local condition adds to the stream, but is no branch of it",
}

# Blocks whose tensors are packed sequences without a batch axis.
PACKED = frozenset({"Cosmos3VLTextMoTDecoderLayer"})

# Module outputs whose batch is not the first axis, by the class of the block or model.
BATCH_AXES: dict[tuple[str, str], int] = {
    ("ErnieImageSharedAdaLNBlock", "mlp"): 1,
    ("ErnieImageTransformer2DModel", "final_linear"): 1,
}

# Lists of blocks that work on the text stream, of a class that works on images elsewhere.
TEXT_CONTAINERS = frozenset({"txt_mode_blocks"})

# Containers beside the trunk: refiners of the text or the latents, and control branches. Their
# blocks are sites only on request.
AUXILIARY = frozenset(
    {
        "context_refiner",
        "noise_refiner",
        "siglip_refiner",
        "text_conv_layer",
        "token_refiner",
        "text_fusion",
        "perceiver",
        "text_transformer_blocks",
        "video_text_transformer_blocks",
        "audio_text_transformer_blocks",
        "vace_blocks",
    }
)

# The last linear of a model, whose scaling scales the output: the paper's omega. One per modality.
DEFAULT_OUTPUT = ("proj_out",)
_FINAL = ("final_layer.linear",)
OUTPUTS: dict[str, tuple[str, ...]] = {
    "AceStepTransformer1DModel": ("proj_out_conv",),
    "BriaFibo2Transformer2DModel": _FINAL,
    "Cosmos3OmniTransformer": ("proj_out", "audio_proj_out"),
    "DiTTransformer2DModel": ("proj_out_2",),
    "ErnieImageTransformer2DModel": ("final_linear",),
    "HiDreamImageTransformer2DModel": _FINAL,
    "Ideogram4Transformer2DModel": _FINAL,
    "Kandinsky5Transformer3DModel": ("out_layer.out_layer",),
    "Kandinsky6SRTransformer3DModel": ("out_layer.out_layer",),
    "Kandinsky6Transformer3DModel": ("out_layer.out_layer", "audio_out_layer.out_layer"),
    "Krea2Transformer2DModel": _FINAL,
    "LTX2VideoTransformer3DModel": ("proj_out", "audio_proj_out"),
    "Lumina2Transformer2DModel": ("norm_out.linear_2",),
    "LuminaNextDiT2DModel": ("norm_out.linear_2",),
    "MiniMaxH3Transformer3DModel": ("proj_out", "audio_proj_out"),
    "PriorTransformer": ("proj_to_clip_embeddings",),
    "PRXTransformer2DModel": _FINAL,
    "SanaWMTransformer3DModel": _FINAL,
    "Transformer2DModel": ("proj_out_2",),
    "WanAnimate2Transformer3DModel": ("head.head",),
    "ZImageTransformer2DModel": ("all_final_layer.*.linear",),
}


@dataclass(frozen=True)
class Branch:
    """One branch of a table row; paths are relative to the block."""

    layer: str
    path: str
    index: int | None
    stream: Stream
    gated: bool
    fold: str


_BRANCH = re.compile(
    r"(?P<path>[\w.]+)(?:\[(?P<index>\d+)\])?(?P<gate>[@~])(?P<stream>[vtja]) -> (?P<fold>[^,]+)"
)


def parse_row(row: str) -> list[Branch]:
    """Split one table row into its branches."""
    layer, _, branches = row.partition(": ")
    return [_parse_branch(layer, branch) for branch in branches.split(", ")]


def _parse_branch(layer: str, branch: str) -> Branch:
    found = _BRANCH.fullmatch(branch)
    assert found, f"'{branch}' is not a branch"
    return Branch(
        layer=layer,
        path=found["path"],
        index=int(found["index"]) if found["index"] else None,
        stream=_STREAMS[found["stream"]],
        gated=found["gate"] == "@",
        fold=found["fold"].strip(),
    )
