"""AuraFlow."""

from calibri.pipelines.families.family import UNCONDITIONAL_FIRST, Family, Guidance
from calibri.pipelines.families.notation import ATTN
from calibri.pipelines.families.timesteps import SHARE

_NESTED = "attention acts through the MLP alone, which hides it when the MLP is off"

FAMILIES = (
    Family(
        classes=("AuraFlowTransformer2DModel",),
        blocks={
            # The MLP adds to the block's input, so attention reaches the stream only through it.
            "AuraFlowJointTransformerBlock": (
                ATTN,
                "mlp: ff@v -> ff.out_projection, ff_context@t -> ff_context.out_projection",
            ),
            "AuraFlowSingleTransformerBlock": (
                "attn: attn@j -> attn.to_out.0",
                "mlp: ff@j -> ff.out_projection",
            ),
        },
        refined={
            "AuraFlowJointTransformerBlock": _NESTED,
            "AuraFlowSingleTransformerBlock": _NESTED,
        },
        timesteps=SHARE,
        guidance=Guidance(UNCONDITIONAL_FIRST),
    ),
)
