"""Classes that are not the trunk of a diffusion model, so that there is nothing to calibrate."""

from calibri.pipelines.families.family import Family

_PART_OF_A_UNET = (
    "a part of a U-Net: it returns its input plus a projection, so no layer scales the output of "
    "the model"
)

FAMILIES = (
    Family(
        classes=("DreamLiteTransformer2DModel", "TransformerTemporalModel"),
        refused=_PART_OF_A_UNET,
    ),
    Family(
        classes=("MiniMaxMusic3RVQDepthDecoder",),
        refused="an autoregressive decoder of audio codes, not a diffusion model",
    ),
    Family(
        classes=("RFD4ProteinaTransformer",),
        refused="designs proteins; its outputs are not images, video or audio",
    ),
    Family(
        classes=("T5FilmDecoder",),
        refused="an early spectrogram decoder whose residual sums lie inside its sublayers, so no "
        "module output is a branch",
    ),
)
