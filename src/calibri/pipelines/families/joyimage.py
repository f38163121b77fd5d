"""JoyImage Edit."""

from calibri.pipelines.families.family import APART, UNCONDITIONAL_FIRST, Family, Guidance
from calibri.pipelines.families.notation import IMG_MLP
from calibri.pipelines.families.timesteps import COUNTED

_ROWS = (
    "attn: attn[0]@v -> attn.img_attn_proj, attn[1]@t -> attn.txt_attn_proj",
    IMG_MLP,
)

FAMILIES = (
    Family(
        classes=("JoyImageEditTransformer3DModel",),
        blocks={"JoyImageTransformerBlock": _ROWS},
        timesteps=COUNTED,
        guidance=Guidance(APART),
    ),
    Family(
        classes=("JoyImageEditPlusTransformer3DModel",),
        blocks={"JoyImageEditPlusTransformerBlock": _ROWS},
        timesteps=COUNTED,
        guidance=Guidance(UNCONDITIONAL_FIRST),
    ),
)
