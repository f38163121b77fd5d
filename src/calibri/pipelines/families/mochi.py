"""Mochi."""

from calibri.pipelines.families.family import UNCONDITIONAL_FIRST, Family, Guidance
from calibri.pipelines.families.timesteps import INVERTED, Timesteps

FAMILIES = (
    Family(
        classes=("MochiTransformer3DModel",),
        blocks={
            "MochiTransformerBlock": (
                "attn: norm2@v -> !tanh, norm2_context@t -> !tanh",
                "mlp: norm4@v -> !tanh, norm4_context@t -> !tanh",
            ),
        },
        timesteps=Timesteps(schedule=INVERTED),
        guidance=Guidance(UNCONDITIONAL_FIRST),
    ),
)
