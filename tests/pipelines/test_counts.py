"""Numbers of scalars of released models: block, layer, gate."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from calibri.config import GRANULARITIES
from calibri.pipelines.granularity import parameter_names
from calibri.pipelines.sites.find import find_sites
from tests.needs import of_diffusers
from tests.pipelines.zoo import QUIET
from tests.tiny import FLUX_DEV, SD35_MEDIUM

pytestmark = QUIET

# The published configurations; without one, those that the class builds by default.
RELEASED: dict[str, tuple[str, dict[str, Any], tuple[int, int, int]]] = {
    "FLUX.1-dev": ("FluxTransformer2DModel", FLUX_DEV, (57, 76, 114)),
    "SD3.5-medium": ("SD3Transformer2DModel", SD35_MEDIUM, (24, 61, 107)),
    "SD3.5-large": (
        "SD3Transformer2DModel",
        dict(num_layers=38, num_attention_heads=38, caption_projection_dim=2432),
        (38, 76, 150),
    ),
    "Qwen-Image": ("QwenImageTransformer2DModel", {}, (60, 120, 240)),
    "FLUX.2-dev": ("Flux2Transformer2DModel", {}, (56, 64, 80)),
    "PixArt": ("PixArtTransformer2DModel", {}, (28, 84, 84)),
    "Sana-1.6B": ("SanaTransformer2DModel", {}, (20, 60, 60)),
    "Sana-0.6B": (
        "SanaTransformer2DModel",
        dict(num_layers=28, num_attention_heads=36, cross_attention_dim=1152),
        (28, 84, 84),
    ),
    "Wan2.1-14B": ("WanTransformer3DModel", {}, (40, 120, 120)),
    "Wan2.1-1.3B": (
        "WanTransformer3DModel",
        dict(num_layers=30, num_attention_heads=12, ffn_dim=8960),
        (30, 90, 90),
    ),
    "Z-Image": ("ZImageTransformer2DModel", {}, (30, 60, 60)),
    "Lumina2": ("Lumina2Transformer2DModel", {}, (26, 52, 52)),
    "HunyuanVideo": ("HunyuanVideoTransformer3DModel", {}, (60, 80, 120)),
    "HunyuanVideo-1.5": ("HunyuanVideo15Transformer3DModel", {}, (54, 108, 216)),
    "HunyuanImage": ("HunyuanImageTransformer2DModel", {}, (60, 80, 120)),
    "Chroma": ("ChromaTransformer2DModel", {}, (57, 76, 114)),
    "LongCat-Image": ("LongCatImageTransformer2DModel", {}, (57, 76, 114)),
    "LTX-Video": ("LTXVideoTransformer3DModel", {}, (28, 84, 84)),
    "CogVideoX": ("CogVideoXTransformer3DModel", {}, (30, 60, 120)),
    "CogView4": ("CogView4Transformer2DModel", dict(num_layers=28), (28, 56, 112)),
    "AuraFlow": ("AuraFlowTransformer2DModel", {}, (36, 72, 80)),
    "Mochi": ("MochiTransformer3DModel", {}, (48, 96, 190)),
    "HiDream": (
        "HiDreamImageTransformer2DModel",
        dict(patch_size=2, caption_channels=[4096, 4096], llama_layers=[31] * 48),
        (48, 96, 128),
    ),
    "OmniGen": (
        "OmniGenTransformer2DModel",
        dict(rope_scaling=dict(long_factor=[1.0] * 48, short_factor=[1.0] * 48)),
        (32, 64, 64),
    ),
    "DiT-XL": ("DiTTransformer2DModel", {}, (28, 56, 56)),
    "PRX": ("PRXTransformer2DModel", {}, (16, 32, 32)),
}


@pytest.mark.parametrize("name", RELEASED)
def test_counts_of_released_models(name):
    model_class, config, counts = RELEASED[name]
    with torch.device("meta"):
        sites = find_sites(of_diffusers(model_class)(**config))
    assert tuple(len(parameter_names(sites, g)) for g in GRANULARITIES) == counts


def test_cross_attention_without_a_gate_is_told_apart():
    with torch.device("meta"):
        sites = find_sites(of_diffusers("PixArtTransformer2DModel")())
    assert sum(site.gated for site in sites) == 56
