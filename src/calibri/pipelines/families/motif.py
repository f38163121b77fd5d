"""Motif-Video."""

from calibri.pipelines.families.family import APART, Family, Guidance
from calibri.pipelines.families.notation import MLP, SINGLE
from calibri.pipelines.families.timesteps import COUNTED

FAMILIES = (
    Family(
        classes=("MotifVideoTransformer3DModel",),
        blocks={
            # The attention output is also the query of a cross-attention, so only its gate scales
            # the branch alone.
            "MotifVideoTransformerBlock": (
                "attn: norm1[1]@v -> norm1.linear[2/6], "
                "norm1_context[1]@t -> norm1_context.linear[2/6]",
                "cross_attn: cross_attn~v -> cross_attn.to_out.0",
                MLP,
            ),
            "MotifVideoSingleTransformerBlock": SINGLE,
        },
        refined={
            "MotifVideoTransformerBlock": "the attention output is also a query; its gate is not"
        },
        timesteps=COUNTED,
        guidance=Guidance(APART),
    ),
)
