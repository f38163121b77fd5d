"""Models of sound."""

from calibri.pipelines.families.family import (
    APART,
    CONDITIONAL_FIRST,
    UNCONDITIONAL_FIRST,
    Family,
    Guidance,
)
from calibri.pipelines.families.notation import UNGATED
from calibri.pipelines.families.timesteps import INVERTED, Schedule, Timesteps

FAMILIES = (
    Family(
        classes=("StableAudioDiTModel",),
        blocks={"StableAudioDiTBlock": UNGATED},
        no_timesteps="its scheduler is EDM's, whose timesteps are an arc tangent of the noise",
        guidance=Guidance(UNCONDITIONAL_FIRST),
    ),
    Family(
        classes=("StableAudio3DiTModel",),
        blocks={
            "StableAudio3DiTBlock": (
                "attn: self_attn@a -> self_attn.to_out",
                "attn2: cross_attn~a -> cross_attn.to_out",
                "mlp: ff@a -> ff.proj_out",
            ),
        },
        refined={
            "StableAudio3DiTBlock": "the local condition adds to the stream, but is no branch of it"
        },
        # Its scheduler counts to 1.
        timesteps=Timesteps(schedule=Schedule.flow(1)),
    ),
    Family(
        classes=("AceStepTransformer1DModel",),
        blocks={
            "AceStepTransformerBlock": (
                "attn: self_attn@a -> self_attn.to_out.0",
                "attn2: cross_attn~a -> cross_attn.to_out.0",
                "mlp: mlp@a -> mlp.down_proj",
            ),
        },
        outputs=("proj_out_conv",),
        timesteps=Timesteps("t / n"),
        guidance=Guidance(CONDITIONAL_FIRST),
    ),
    Family(
        classes=("LongCatAudioDiTTransformer",),
        blocks={
            "AudioDiTBlock": (
                "attn: self_attn@a -> self_attn.to_out.0",
                "attn2: cross_attn~a -> cross_attn.to_out.0",
                "mlp: ffn@a -> ffn.ff.3",
            ),
        },
        auxiliary=frozenset({"text_conv_layer"}),
        timesteps=Timesteps("t / n", schedule=INVERTED),
        guidance=Guidance(APART),
    ),
)
