"""PixArt, DiT, Latte and others of the first block of diffusers, and Allegro."""

from calibri.pipelines.families.family import (
    CONDITIONAL_FIRST,
    UNCONDITIONAL_FIRST,
    Family,
    Guidance,
)
from calibri.pipelines.families.notation import CROSSED, UNGATED
from calibri.pipelines.families.timesteps import DIFFUSION, Timesteps

_TIMESTEPS = Timesteps(schedule=DIFFUSION)

FAMILIES = (
    Family(
        classes=(
            "PixArtTransformer2DModel",
            "LatteTransformer3DModel",
            "AllegroTransformer3DModel",
        ),
        blocks={
            "BasicTransformerBlock": CROSSED,
            "BasicTransformerBlock[layer_norm]": UNGATED,
            "AllegroTransformerBlock": CROSSED,
        },
        timesteps=_TIMESTEPS,
        guidance=Guidance(UNCONDITIONAL_FIRST),
    ),
    Family(
        classes=("DiTTransformer2DModel",),
        outputs=("proj_out_2",),
        timesteps=_TIMESTEPS,
        guidance=Guidance(CONDITIONAL_FIRST),
    ),
    Family(
        classes=("PriorTransformer",),
        outputs=("proj_to_clip_embeddings",),
        timesteps=_TIMESTEPS,
    ),
    Family(classes=("Transformer2DModel",), outputs=("proj_out_2",)),
)
