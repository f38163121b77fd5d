"""Image models with one stream of tokens and blocks of their own."""

from calibri.pipelines.families.family import (
    APART,
    CONDITIONAL_FIRST,
    UNCONDITIONAL_FIRST,
    Family,
    Guidance,
)
from calibri.pipelines.families.timesteps import COUNTED, Timesteps

_FINAL = ("final_layer.linear",)

FAMILIES = (
    Family(
        classes=("OmniGenTransformer2DModel",),
        blocks={
            "OmniGenBlock": (
                "attn: self_attn~j -> self_attn.to_out.0",
                "mlp: mlp~j -> mlp.down_proj",
            )
        },
        timesteps=Timesteps(schedule=None),
        guidance=Guidance(CONDITIONAL_FIRST),
    ),
    Family(
        classes=("ErnieImageTransformer2DModel",),
        blocks={
            "ErnieImageSharedAdaLNBlock": (
                "attn: self_attention@j -> self_attention.to_out.0",
                "mlp: mlp@j -> mlp.linear_fc2",
            ),
        },
        outputs=("final_linear",),
        batch_axes={
            ("ErnieImageSharedAdaLNBlock", "mlp"): 1,
            ("ErnieImageTransformer2DModel", "final_linear"): 1,
        },
        timesteps=COUNTED,
        guidance=Guidance(UNCONDITIONAL_FIRST),
    ),
    Family(
        classes=("Krea2Transformer2DModel",),
        blocks={"Krea2TransformerBlock": ("attn: attn@j -> attn.to_out.0", "mlp: ff@j -> ff.down")},
        outputs=_FINAL,
        auxiliary=frozenset({"text_fusion"}),
        timesteps=Timesteps("t / n"),
        guidance=Guidance(APART, excess_above=0.0),
    ),
    Family(
        classes=("PRXTransformer2DModel",),
        # The MLP is written inline in the block, so its last linear is the branch.
        blocks={
            "PRXBlock": ("attn: attention@v -> attention.to_out.0", "mlp: down_proj@v -> down_proj")
        },
        outputs=_FINAL,
        timesteps=Timesteps("t / n"),
        guidance=Guidance(UNCONDITIONAL_FIRST),
    ),
    Family(
        classes=("NucleusMoEImageTransformer2DModel",),
        blocks={
            "NucleusMoEImageTransformerBlock": (
                "attn: attn@v -> attn.to_out.0",
                "mlp: img_mlp@v -> img_mlp.net.2 | "
                "img_mlp.experts.down_proj + img_mlp.shared_expert.net.2",
            ),
        },
        timesteps=Timesteps("t / n"),
        guidance=Guidance(APART),
    ),
)
