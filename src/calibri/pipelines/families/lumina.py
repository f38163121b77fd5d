"""Lumina, Z-Image, Ideogram 4 and Fibo 2, whose blocks normalise a branch before they add it.

Scaling the sublayer is undone by the norm that follows, so the norm's output is the branch. Its
weight is linear in the scale; the rows of its tanh gate are not.
"""

from calibri.pipelines.families.family import APART, CONDITIONAL_FIRST, Family, Guidance
from calibri.pipelines.families.timesteps import SHARE, SHARE_OF_IMAGE, Timesteps

_SANDWICH = (
    "attn: attention_norm2@j -> attention_norm2",
    "cross_attn: cross_attn_norm2@j -> cross_attn_norm2",
    "mlp: ffn_norm2@j -> ffn_norm2",
)


FAMILIES = (
    Family(
        classes=("Lumina2Transformer2DModel",),
        blocks={
            "Lumina2TransformerBlock": ("attn: norm2@j -> norm2", "mlp: ffn_norm2@j -> ffn_norm2")
        },
        outputs=("norm_out.linear_2",),
        auxiliary=frozenset({"context_refiner", "noise_refiner"}),
        timesteps=SHARE_OF_IMAGE,
        guidance=Guidance(APART),
    ),
    Family(
        classes=("LuminaNextDiT2DModel",),
        blocks={"LuminaNextDiTBlock": ("attn: norm2@v -> norm2", "mlp: ffn_norm2@v -> ffn_norm2")},
        outputs=("norm_out.linear_2",),
        timesteps=SHARE_OF_IMAGE,
        guidance=Guidance(CONDITIONAL_FIRST),
    ),
    Family(
        classes=("ZImageTransformer2DModel",),
        blocks={"ZImageTransformerBlock": _SANDWICH},
        outputs=("all_final_layer.*.linear",),
        auxiliary=frozenset({"context_refiner", "noise_refiner", "siglip_refiner"}),
        timesteps=Timesteps("1 - t / 1000", argument="t"),
        guidance=Guidance(CONDITIONAL_FIRST, excess_above=0.0),
    ),
    Family(
        classes=("Ideogram4Transformer2DModel",),
        blocks={"Ideogram4TransformerBlock": _SANDWICH},
        outputs=("final_layer.linear",),
        timesteps=SHARE_OF_IMAGE,
        guidance=Guidance("two transformers"),
    ),
    Family(
        classes=("BriaFibo2Transformer2DModel",),
        blocks={"BriaFibo2TransformerBlock": _SANDWICH},
        outputs=("final_layer.linear",),
        auxiliary=frozenset({"noise_refiner", "perceiver"}),
        timesteps=SHARE,
        guidance=Guidance(APART),
    ),
)
