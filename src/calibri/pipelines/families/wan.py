"""Wan and the video models made from it."""

from calibri.pipelines.families.family import APART, UNCONDITIONAL_FIRST, Family, Guidance
from calibri.pipelines.families.notation import CROSS, SELF_ATTN1
from calibri.pipelines.families.timesteps import COUNTED

_WAN = (SELF_ATTN1, CROSS, "mlp: ffn@v -> ffn.net.2")

FAMILIES = (
    Family(
        classes=(
            "WanTransformer3DModel",
            "WanAnimateTransformer3DModel",
            "WanVACETransformer3DModel",
            "ChronoEditTransformer3DModel",
            "SkyReelsV2Transformer3DModel",
            "HeliosTransformer3DModel",
        ),
        blocks={
            "WanTransformerBlock": _WAN,
            "WanVACETransformerBlock": _WAN,
            "SkyReelsV2TransformerBlock": _WAN,
            "HeliosTransformerBlock": _WAN,
        },
        auxiliary=frozenset({"vace_blocks"}),
        timesteps=COUNTED,
        guidance=Guidance(APART),
    ),
    Family(
        classes=("WanAnimate2Transformer3DModel",),
        blocks={
            "WanAnimate2TransformerBlock": (
                "attn: self_attn@v -> self_attn.to_out.0",
                "attn2: cross_attn~v -> cross_attn.to_out.0",
                "mlp: ffn@v -> ffn.2",
            ),
        },
        outputs=("head.head",),
        # Its keys and values of the driving video are those of the first step.
        no_timesteps="it is called for the driving video, too, at the first timestep",
        guidance=Guidance(APART),
    ),
    Family(
        classes=("AnyFlowTransformer3DModel",),
        blocks={"AnyFlowTransformerBlock": _WAN},
        timesteps=COUNTED,
        guidance=Guidance(UNCONDITIONAL_FIRST),
    ),
    Family(
        classes=("AnyFlowFARTransformer3DModel",),
        # Its pipeline also calls it for frames that are done.
        no_timesteps="it is called with the timestep of an image between the steps of sampling",
    ),
)
