"""Models built like FLUX.1: double blocks of two streams, then single blocks of one."""

from calibri.pipelines.families.family import APART, UNCONDITIONAL_FIRST, Family, Guidance
from calibri.pipelines.families.notation import DOUBLE, SINGLE
from calibri.pipelines.families.timesteps import COUNTED, SHARE

FAMILIES = (
    Family(
        classes=("ChromaTransformer2DModel",),
        blocks={"ChromaTransformerBlock": DOUBLE, "ChromaSingleTransformerBlock": SINGLE},
        timesteps=SHARE,
        guidance=Guidance(APART),
    ),
    Family(
        classes=("LongCatImageTransformer2DModel",),
        blocks={
            "LongCatImageTransformerBlock": DOUBLE,
            "LongCatImageSingleTransformerBlock": SINGLE,
        },
        timesteps=SHARE,
        guidance=Guidance(APART),
    ),
    Family(
        classes=("OvisImageTransformer2DModel",),
        blocks={"OvisImageTransformerBlock": DOUBLE, "OvisImageSingleTransformerBlock": SINGLE},
        timesteps=SHARE,
        guidance=Guidance(APART),
    ),
    Family(
        classes=("BriaTransformer2DModel", "BriaFiboTransformer2DModel"),
        blocks={
            "BriaTransformerBlock": DOUBLE,
            "BriaSingleTransformerBlock": SINGLE,
            "BriaFiboTransformerBlock": DOUBLE,
            "BriaFiboSingleTransformerBlock": SINGLE,
        },
        timesteps=COUNTED,
        guidance=Guidance(UNCONDITIONAL_FIRST),
    ),
)
