"""Linear layers of ComfyUI's model classes where diffusers converts no checkpoint.

Read off the state of its classes in 0.3.64, and off the source of newer ones: Ovis and LongCat
are its FLUX, Ideogram 4, Kandinsky 5, JoyImage and ACE-Step 1.5 have a class of their own. The
weights of norms are in them where they take a scale.
"""


def _under(parent, names):
    return {f"{parent}.{name}" for name in names.split()}


_DOUBLE = (
    "img_attn.proj img_attn.qkv img_mod.lin img_mlp.0 img_mlp.2 "
    "txt_attn.proj txt_attn.qkv txt_mod.lin txt_mlp.0 txt_mlp.2"
)
_FINAL = _under("final_layer", "adaLN_modulation.1 linear")
_FLUX = (
    _under("double_blocks.*", _DOUBLE)
    | _under("single_blocks.*", "linear1 linear2 modulation.lin")
    | _FINAL
)
_JOY = _under(
    "double_blocks.*",
    "attn.img_attn_qkv attn.img_attn_proj attn.txt_attn_qkv attn.txt_attn_proj "
    "img_mlp.net.0.proj img_mlp.net.2 txt_mlp.net.0.proj txt_mlp.net.2",
) | {"proj_out"}
_ATTENTION = "to_query to_key to_value out_layer"

LAYERS = {
    "PixArtTransformer2DModel": _under(
        "blocks.*",
        "attn.qkv attn.proj cross_attn.q_linear cross_attn.kv_linear cross_attn.proj "
        "mlp.fc1 mlp.fc2",
    )
    | {"final_layer.linear"},
    "HunyuanDiT2DModel": _under(
        "blocks.*",
        "attn1.Wqkv attn1.out_proj attn2.q_proj attn2.kv_proj attn2.out_proj mlp.fc1 mlp.fc2 "
        "default_modulation.1 skip_linear",
    )
    | _FINAL,
    "HunyuanImageTransformer2DModel": _FLUX,
    "HunyuanVideo15Transformer3DModel": _FLUX,
    "LongCatImageTransformer2DModel": _FLUX,
    "OvisImageTransformer2DModel": {name for name in _FLUX if "_mlp." not in name}
    | _under("double_blocks.*.img_mlp", "gate_proj up_proj down_proj")
    | _under("double_blocks.*.txt_mlp", "gate_proj up_proj down_proj"),
    "StableAudioDiTModel": _under(
        "transformer.layers.*",
        "self_attn.to_qkv self_attn.to_out cross_attn.to_q cross_attn.to_kv cross_attn.to_out "
        "ff.ff.0.proj ff.ff.2",
    )
    | _under("transformer", "project_in project_out"),
    "AceStepTransformer1DModel": _under("decoder.layers.*.self_attn", "q_proj k_proj v_proj o_proj")
    | _under("decoder.layers.*.cross_attn", "q_proj k_proj v_proj o_proj")
    | _under("decoder.layers.*.mlp", "gate_proj up_proj down_proj")
    | _under("decoder", "proj_in.1 proj_out.1 condition_embedder"),
    "Ideogram4Transformer2DModel": _under(
        "layers.*",
        "attention.qkv attention.o attention_norm1 attention_norm2 feed_forward.w1 "
        "feed_forward.w2 feed_forward.w3 ffn_norm1 ffn_norm2 adaln_modulation",
    )
    | _under("final_layer", "adaln_modulation linear"),
    "JoyImageEditTransformer3DModel": _JOY,
    "JoyImageEditPlusTransformer3DModel": _JOY,
    "Kandinsky5Transformer3DModel": _under("visual_transformer_blocks.*.self_attention", _ATTENTION)
    | _under("visual_transformer_blocks.*.cross_attention", _ATTENTION)
    | _under("visual_transformer_blocks.*.feed_forward", "in_layer out_layer")
    | _under("out_layer", "modulation.out_layer out_layer"),
}
