"""LTX-Video and LTX-2."""

from calibri.pipelines.families.family import UNCONDITIONAL_FIRST, Family, Guidance
from calibri.pipelines.families.notation import CROSSED
from calibri.pipelines.families.timesteps import COUNTED

FAMILIES = (
    Family(
        classes=("LTXVideoTransformer3DModel",),
        blocks={"LTXVideoTransformerBlock": CROSSED},
        timesteps=COUNTED,
        guidance=Guidance(UNCONDITIONAL_FIRST),
    ),
    Family(
        classes=("LTX2VideoTransformer3DModel",),
        blocks={
            "LTX2VideoTransformerBlock": (
                "attn: attn1@v -> attn1.to_out.0, audio_attn1@a -> audio_attn1.to_out.0",
                "attn2: attn2~v -> attn2.to_out.0, audio_attn2~a -> audio_attn2.to_out.0",
                "cross_modal: audio_to_video_attn@v -> audio_to_video_attn.to_out.0, "
                "video_to_audio_attn@a -> video_to_audio_attn.to_out.0",
                "mlp: ff@v -> ff.net.2, audio_ff@a -> audio_ff.net.2",
            ),
        },
        outputs=("proj_out", "audio_proj_out"),
        timesteps=COUNTED,
        guidance=Guidance(UNCONDITIONAL_FIRST),
    ),
    Family(
        classes=("SanaWMLTX2RefinerTransformer3DModel",),
        # Built like LTX2, but its forward runs the video stream alone.
        blocks={"SanaWMLTX2RefinerTransformerBlock": CROSSED},
    ),
)
