"""HiDream."""

from calibri.pipelines.families.family import UNCONDITIONAL_FIRST, Family, Guidance
from calibri.pipelines.families.timesteps import Timesteps

_EXPERTS = "ff_i.experts.*.w2 + ff_i.shared_experts.w2 | ff_i.w2"

FAMILIES = (
    Family(
        classes=("HiDreamImageTransformer2DModel",),
        blocks={
            "HiDreamImageTransformerBlock": (
                "attn: attn1[0]@v -> attn1.to_out, attn1[1]@t -> attn1.to_out_t",
                f"mlp: ff_i@v -> {_EXPERTS}, ff_t@t -> ff_t.w2",
            ),
            "HiDreamImageSingleTransformerBlock": (
                "attn: attn1@j -> attn1.to_out",
                f"mlp: ff_i@j -> {_EXPERTS}",
            ),
        },
        outputs=("final_layer.linear",),
        timesteps=Timesteps(argument="timesteps"),
        guidance=Guidance(UNCONDITIONAL_FIRST),
    ),
)
