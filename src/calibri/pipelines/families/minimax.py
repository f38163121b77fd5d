"""MiniMax H3 and Music 3."""

from calibri.pipelines.families.family import APART, Family, Guidance

FAMILIES = (
    Family(
        classes=("MiniMaxH3Transformer3DModel",),
        blocks={
            "MiniMaxH3TransformerBlock": ("attn: attn@j -> attn.to_out.0", "mlp: ff@j -> ff.net.2")
        },
        outputs=("proj_out", "audio_proj_out"),
        auxiliary=frozenset({"token_refiner"}),
        no_timesteps="each row of its sequence has a timestep, of pictures or of sound",
        one_prompt=True,
    ),
    Family(
        classes=("MiniMaxMusic3Transformer1DModel",),
        blocks={
            "MiniMaxMusic3TransformerBlock": (
                "attn: attn~a -> attn.to_out.0",
                "mlp: ff_out~a -> ff_out",
            )
        },
        no_timesteps="parts of a song that are done are noised again at every step",
        guidance=Guidance(APART),
    ),
)
