"""CogVideoX, CogView and what was made from them: one linear serves both streams.

So the gates are the sites: the norms return them, and the rows of their modulation linear that make
them take the fold.
"""

from calibri.pipelines.families.family import APART, UNCONDITIONAL_FIRST, Family, Guidance
from calibri.pipelines.families.timesteps import COUNTED, DIFFUSION, Timesteps

_COGVIDEO = (
    "attn: norm1[2]@v -> norm1.linear[2/6], norm1[3]@t -> norm1.linear[5/6]",
    "mlp: norm2[2]@v -> norm2.linear[2/6], norm2[3]@t -> norm2.linear[5/6]",
)
_COGVIEW3 = (
    "attn: norm1[1]@v -> norm1.linear[2/12], norm1[6]@t -> norm1.linear[8/12]",
    "mlp: norm1[4]@v -> norm1.linear[5/12], norm1[9]@t -> norm1.linear[11/12]",
)
_COGVIEW4 = (
    "attn: norm1[1]@v -> norm1.linear[4/12], norm1[6]@t -> norm1.linear[5/12]",
    "mlp: norm1[4]@v -> norm1.linear[10/12], norm1[9]@t -> norm1.linear[11/12]",
)
_SPLIT = "discovery finds the outputs of linears that serve both streams; the gates tell them apart"
_DRAWS = (
    "draws tokens for a whole batch from one seed, so that an image would depend on its neighbours"
)


def _refined(*blocks: str) -> dict[str, str]:
    return dict.fromkeys(blocks, _SPLIT)


FAMILIES = (
    Family(
        classes=("CogVideoXTransformer3DModel", "ConsisIDTransformer3DModel"),
        blocks={"CogVideoXBlock": _COGVIDEO, "ConsisIDBlock": _COGVIDEO},
        refined=_refined("CogVideoXBlock", "ConsisIDBlock"),
        timesteps=Timesteps(schedule=DIFFUSION),
        guidance=Guidance(UNCONDITIONAL_FIRST),
    ),
    Family(
        classes=("EasyAnimateTransformer3DModel",),
        blocks={"EasyAnimateTransformerBlock": _COGVIDEO},
        refined=_refined("EasyAnimateTransformerBlock"),
        timesteps=COUNTED,
        guidance=Guidance(UNCONDITIONAL_FIRST),
    ),
    Family(
        classes=("CogView3PlusTransformer2DModel",),
        blocks={"CogView3PlusTransformerBlock": _COGVIEW3},
        refined=_refined("CogView3PlusTransformerBlock"),
        timesteps=Timesteps(schedule=DIFFUSION),
        guidance=Guidance(UNCONDITIONAL_FIRST),
    ),
    Family(
        classes=("CogView4Transformer2DModel",),
        blocks={"CogView4TransformerBlock": _COGVIEW4},
        refined=_refined("CogView4TransformerBlock"),
        timesteps=COUNTED,
        guidance=Guidance(APART),
    ),
    Family(
        classes=("GlmImageTransformer2DModel",),
        blocks={"GlmImageTransformerBlock": _COGVIEW4},
        refined=_refined("GlmImageTransformerBlock"),
        timesteps=Timesteps("t - 1"),
        guidance=Guidance(APART),
        unsampled=_DRAWS,
    ),
)
