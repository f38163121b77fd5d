"""Cosmos 1, 2 and 2.5, and Cosmos 3."""

from calibri.pipelines.families.family import APART, Family, Guidance
from calibri.pipelines.families.notation import ATTN2, FF, SELF_ATTN1
from calibri.pipelines.families.timesteps import Timesteps

FAMILIES = (
    Family(
        classes=("CosmosTransformer3DModel",),
        blocks={"CosmosTransformerBlock": (SELF_ATTN1, ATTN2, FF)},
        # Cosmos 2 gives it the share of noise; Cosmos 1, whose scheduler is EDM's, a logarithm.
        timesteps=Timesteps("t / n", schedule=None),
        guidance=Guidance(APART, excess_above=1.0),
    ),
    Family(
        classes=("Cosmos3OmniTransformer",),
        blocks={
            "Cosmos3VLTextMoTDecoderLayer": (
                "attn: self_attn[0]~t -> self_attn.to_out, self_attn[1]~v -> self_attn.to_add_out",
                "mlp: mlp~t -> mlp.down_proj, mlp_moe_gen~v -> mlp_moe_gen.down_proj",
            ),
        },
        outputs=("proj_out", "audio_proj_out"),
        packed=True,
        timesteps=Timesteps(argument="vision_timesteps"),
        guidance=Guidance(APART),
    ),
)
