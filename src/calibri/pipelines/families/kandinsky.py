"""Kandinsky 5 and 6."""

from calibri.pipelines.families.family import APART, Family, Guidance
from calibri.pipelines.families.timesteps import COUNTED

FAMILIES = (
    Family(
        classes=("Kandinsky5Transformer3DModel",),
        blocks={
            "Kandinsky5TransformerDecoderBlock": (
                "attn: self_attention@v -> self_attention.out_layer",
                "attn2: cross_attention@v -> cross_attention.out_layer",
                "mlp: feed_forward@v -> feed_forward.out_layer",
            ),
        },
        outputs=("out_layer.out_layer",),
        auxiliary=frozenset({"text_transformer_blocks"}),
        timesteps=COUNTED,
        guidance=Guidance(APART),
    ),
    Family(
        classes=("Kandinsky6Transformer3DModel",),
        blocks={
            "Kandinsky6FusedTransformerDecoderBlock": (
                "attn: video_dec_block.self_attention@v -> "
                "video_dec_block.self_attention.out_layer, "
                "audio_dec_block.self_attention@a -> audio_dec_block.self_attention.out_layer",
                "attn2: video_dec_block.cross_attention@v -> "
                "video_dec_block.cross_attention.out_layer, "
                "audio_dec_block.cross_attention@a -> audio_dec_block.cross_attention.out_layer",
                "cross_modal: va_cross_attention@v -> va_cross_attention.out_layer, "
                "av_cross_attention@a -> av_cross_attention.out_layer",
                "mlp: video_dec_block.feed_forward@v -> video_dec_block.feed_forward.net.2, "
                "audio_dec_block.feed_forward@a -> audio_dec_block.feed_forward.net.2",
            ),
        },
        outputs=("out_layer.out_layer", "audio_out_layer.out_layer"),
        auxiliary=frozenset({"video_text_transformer_blocks", "audio_text_transformer_blocks"}),
        timesteps=COUNTED,
        guidance=Guidance(APART),
    ),
    Family(
        classes=("Kandinsky6SRTransformer3DModel",),
        blocks={
            "Kandinsky6SRTransformerBlock": (
                "attn: self_attention@v -> self_attention.out_layer",
                "mlp: feed_forward@v -> feed_forward.net.2",
            ),
        },
        outputs=("out_layer.out_layer",),
        timesteps=COUNTED,
    ),
)
