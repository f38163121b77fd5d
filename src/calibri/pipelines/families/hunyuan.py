"""HunyuanVideo, HunyuanImage and HunyuanDiT."""

from calibri.pipelines.families.family import (
    APART,
    EMBEDDED_OR_APART,
    UNCONDITIONAL_FIRST,
    Family,
    Guidance,
)
from calibri.pipelines.families.notation import DOUBLE, SINGLE, UNGATED
from calibri.pipelines.families.timesteps import COUNTED, DIFFUSION, Timesteps

FAMILIES = (
    Family(
        classes=("HunyuanVideoTransformer3DModel",),
        blocks={
            "HunyuanVideoTransformerBlock": DOUBLE,
            "HunyuanVideoSingleTransformerBlock": SINGLE,
            "HunyuanVideoTokenReplaceTransformerBlock": DOUBLE,
            "HunyuanVideoTokenReplaceSingleTransformerBlock": SINGLE,
        },
        auxiliary=frozenset({"token_refiner"}),
        timesteps=COUNTED,
        guidance=Guidance(EMBEDDED_OR_APART),
    ),
    Family(
        classes=(
            "HunyuanVideo15Transformer3DModel",
            "HunyuanVideoFramepackTransformer3DModel",
            "HunyuanImageTransformer2DModel",
        ),
        blocks={
            "HunyuanVideo15TransformerBlock": DOUBLE,
            "HunyuanImageTransformerBlock": DOUBLE,
            "HunyuanImageSingleTransformerBlock": SINGLE,
        },
        auxiliary=frozenset({"token_refiner"}),
        timesteps=COUNTED,
        guidance=Guidance(APART),
    ),
    Family(
        classes=("HunyuanDiT2DModel",),
        blocks={"HunyuanDiTBlock": UNGATED},
        timesteps=Timesteps(schedule=DIFFUSION),
        guidance=Guidance(UNCONDITIONAL_FIRST),
    ),
)
