import pytest
import torch
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel, UNet2DModel

from calibri.config import GRANULARITIES
from calibri.errors import UnsupportedModelError
from calibri.pipelines.granularity import parameter_names
from calibri.pipelines.sites.find import find_output_sites, find_sites
from tests.tiny import FLUX_DEV, SD35_MEDIUM, tiny_flux, tiny_sd3


@pytest.mark.parametrize(
    ("model_class", "config", "counts"),
    [
        (FluxTransformer2DModel, FLUX_DEV, (57, 76, 114)),
        (SD3Transformer2DModel, SD35_MEDIUM, (24, 61, 107)),
    ],
)
def test_counts_of_the_paper(model_class, config, counts):
    with torch.device("meta"):
        model = model_class(**config)
    sites = find_sites(model)
    assert tuple(len(parameter_names(sites, g)) for g in GRANULARITIES) == counts


def test_sd3_names_streams_and_dropped_branches():
    sites = {site.name: site for site in find_sites(tiny_sd3(dual=(0,)))}
    assert sites["transformer_blocks.0.attn[0]"].stream == "visual"
    assert sites["transformer_blocks.0.attn[1]"].stream == "text"
    assert sites["transformer_blocks.0.attn2"].layer == "attn2"
    assert "transformer_blocks.1.attn2" not in sites
    # The last block discards its text stream.
    assert "transformer_blocks.2.attn[1]" not in sites
    assert "transformer_blocks.2.ff_context" not in sites
    assert len(sites) == 4 * 3 - 2 + 1


@pytest.mark.parametrize("make", [tiny_sd3, tiny_flux])
def test_every_path_and_fold_target_exists(make):
    model = make()
    modules = dict(model.named_modules())
    for site in (*find_sites(model), *find_output_sites(model)):
        assert site.path in modules
        assert all(fold.path in modules for fold in site.fold)


def test_a_unet_is_refused_with_its_blocks_named():
    unet = UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )
    with pytest.raises(UnsupportedModelError, match="DownBlock2D"):
        find_sites(unet)
    with pytest.raises(UnsupportedModelError, match="UNet2DModel"):
        find_output_sites(unet)
