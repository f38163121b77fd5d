"""Sana, Sana-Video and Sana-WM."""

from calibri.pipelines.families.family import UNCONDITIONAL_FIRST, Family, Guidance
from calibri.pipelines.families.notation import CROSS, SELF_ATTN1
from calibri.pipelines.families.timesteps import COUNTED, Timesteps

_SANA = (SELF_ATTN1, CROSS, "mlp: ff@v -> ff.conv_point")

FAMILIES = (
    Family(
        classes=("SanaTransformer2DModel",),
        blocks={"SanaTransformerBlock": _SANA},
        # The pipeline of the distilled models gives them another function of t.
        timesteps=Timesteps(schedule=None, factor="timestep_scale"),
        guidance=Guidance(UNCONDITIONAL_FIRST),
    ),
    Family(
        classes=("SanaVideoTransformer3DModel",),
        # The temporal convolution adds a linear map of the point convolution to itself.
        blocks={"SanaVideoTransformerBlock": _SANA},
        timesteps=COUNTED,
        guidance=Guidance(UNCONDITIONAL_FIRST),
    ),
    Family(
        classes=("SanaWMTransformer3DModel",),
        blocks={
            "SanaVideoMSCamCtrlBlock": (
                "attn: attn@v -> attn.proj",
                "attn2: cross_attn~v -> cross_attn.proj",
                "mlp: mlp@v -> mlp.point_conv.conv",
            ),
        },
        outputs=("final_layer.linear",),
        refined={
            "SanaVideoMSCamCtrlBlock": "the ray embedding adds to the stream, but is a condition"
        },
        timesteps=COUNTED,
        guidance=Guidance(UNCONDITIONAL_FIRST),
    ),
)
