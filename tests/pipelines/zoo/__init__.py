"""One tiny random model and inputs for every transformer class that we run."""

import pytest

from tests.pipelines.zoo.image import IMAGE
from tests.pipelines.zoo.other import OTHER
from tests.pipelines.zoo.specimen import Specimen, run, take_row
from tests.pipelines.zoo.video import VIDEO

ZOO = (*IMAGE, *VIDEO, *OTHER)

# One of each shape of block; the others are as fast, but together they take minutes.
_QUICK = {
    "CogVideoXTransformer3DModel",
    "FluxTransformer2DModel",
    "SD3Transformer2DModel-dual",
    "WanTransformer3DModel",
    "ZImageTransformer2DModel",
}

EVERY = pytest.mark.parametrize(
    "specimen",
    [
        pytest.param(
            specimen, id=specimen.id, marks=() if specimen.id in _QUICK else pytest.mark.slow
        )
        for specimen in ZOO
    ],
)

# Warnings of the models themselves, on building them and on running them on a CPU.
QUIET = [
    pytest.mark.filterwarnings(f"ignore:{message}")
    for message in (
        "`FluxPosEmbed` is deprecated:FutureWarning",
        "flex_attention called without torch.compile:UserWarning",
        "In CPU autocast:UserWarning",
    )
]

__all__ = ["EVERY", "QUIET", "ZOO", "Specimen", "run", "take_row"]
