import json
import shutil
from functools import cache

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from calibri.config import SamplingConfig, load_config
from calibri.errors import ConfigError, UnsupportedModelError
from calibri.pipelines.blueprints import build, find_geometry
from calibri.pipelines.geometries import Component
from calibri.pipelines.loading import load_pipeline
from calibri.planning.costs import with_defaults
from calibri.planning.flops import count_parameters, image_flops, image_size
from calibri.prompts.files import make_prompts
from calibri.results import Fidelity
from calibri.sampling.sampler import Noise, Sampler
from calibri.shapes.paths import PIPELINE_PATH

pytestmark = pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning")


@cache
def built(pipeline):
    return {role: build(part) for role, part in find_geometry(pipeline).components.items()}


@cache
def counted(pipeline, **values):
    geometry = find_geometry(pipeline)
    config = with_defaults(load_config(values={"pipeline": pipeline, **values}), geometry)
    return image_flops(geometry, built(pipeline), config), built(pipeline), config


# Counts at 512 px that were made by hand, and the published sizes of the networks.
@pytest.mark.parametrize(
    ("pipeline", "forward", "text", "decode", "billions"),
    [
        ("flux.1-dev", 21.50, 4.9, 2.51, 11.90),
        ("sd3.5-medium", 2.44, 5.2 / 2, 2.51, 2.24),
        ("qwen-image", 15.0, 1.6 / 2, 2.84, 20.43),
    ],
)
def test_the_models_of_the_paper_cost_what_was_counted(pipeline, forward, text, decode, billions):
    flops, networks, _ = counted(pipeline)
    assert flops.forward / 1e12 == pytest.approx(forward, rel=0.02)
    assert flops.decode / 1e12 == pytest.approx(decode, rel=0.02)
    assert flops.text / 1e12 == pytest.approx(text, rel=0.06)
    assert count_parameters(networks["transformer"]) / 1e9 == pytest.approx(billions, rel=0.002)


def test_a_count_from_configuration_files_is_that_of_sampling():
    flops, _, _ = counted("shapes")
    sampler = Sampler(load_pipeline("shapes", device="cpu"), SamplingConfig())
    noises = [Noise(prompt, 1) for prompt in make_prompts(["a red circle", "a blue square"])]
    sampler.sample(noises, Fidelity(num_inference_steps=1))  # encodes the prompts
    totals = []
    for steps in (1, 4):
        # The counter does not know the fused attention of a CPU.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            sampler.sample(noises, Fidelity(num_inference_steps=steps))
        totals.append(counter.get_total_flops())
    assert totals[1] - totals[0] == 2 * 3 * flops.forward
    assert totals[0] == 2 * (flops.forward + flops.decode)


def test_a_folder_needs_no_weights(tmp_path):
    for path in PIPELINE_PATH.rglob("*.json"):
        copy = tmp_path / path.relative_to(PIPELINE_PATH)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    assert find_geometry(str(tmp_path)).components == find_geometry("shapes").components


def test_a_repository_of_the_paper_is_known_without_the_hub():
    name = "stabilityai/stable-diffusion-3.5-medium"
    assert find_geometry(name) is find_geometry("SD3.5-medium")
    assert find_geometry("black-forest-labs/FLUX.1-dev") is find_geometry("flux.1-dev")


def test_networks_are_built_without_memory():
    _, networks, _ = counted("qwen-image")
    devices = {p.device for network in networks.values() for p in network.parameters()}
    assert devices == {torch.device("meta")}


def test_larger_images_cost_more():
    small, _, config = counted("sd3.5-medium")
    assert config.sampling.height == 512
    large, _, _ = counted("sd3.5-medium", **{"sampling.height": 1024})
    # Prompt tokens do not grow, and attention grows with the square.
    assert 1.5 < large.forward / small.forward < 4
    assert large.decode == pytest.approx(2 * small.decode, rel=0.05)
    assert large.text == small.text


def test_a_size_that_the_transformer_cannot_make_is_refused():
    with pytest.raises(ConfigError, match=r"sampling\.height"):
        counted("shapes", **{"sampling.height": 48})


def test_the_size_of_an_image_is_the_pipelines_own_unless_configured():
    _, networks, config = counted("shapes")
    assert image_size(networks, config) == (24, 24)
    _, networks, _ = counted("flux.1-dev")
    assert image_size(networks, load_config(values={"sampling.width": 256})) == (1024, 256)


@pytest.mark.parametrize(
    "component",
    [
        Component("transformers", "pipeline", {}),
        Component("diffusers", "NoSuchModel", {}),
        Component("transformers", "AutoModel", {}),
        Component("diffusers", "SD3Transformer2DModel", {"num_layers": "many"}),
    ],
)
def test_what_is_no_network_of_the_libraries_is_refused(component):
    with pytest.raises(UnsupportedModelError, match=component.class_name):
        build(component)


def test_networks_of_other_libraries_are_not_touched(tmp_path):
    index = json.loads((PIPELINE_PATH / "model_index.json").read_text())
    shutil.copytree(PIPELINE_PATH, tmp_path, dirs_exist_ok=True)
    index["text_encoder"] = ["os", "system"]
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    assert "text_encoder" not in find_geometry(str(tmp_path)).components


@pytest.mark.parametrize("content", [None, "[]", "{", "{}"])
def test_a_folder_that_is_no_pipeline_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "model_index.json").write_text(content)
    with pytest.raises(UnsupportedModelError, match=r"model_index\.json"):
        find_geometry(str(tmp_path))


def test_a_transformer_that_cannot_be_counted_is_refused():
    with torch.device("meta"):
        from diffusers import AutoencoderKL, PixArtTransformer2DModel

        networks = {"transformer": PixArtTransformer2DModel(num_layers=1), "vae": AutoencoderKL()}
    with pytest.raises(UnsupportedModelError, match="PixArtTransformer2DModel"):
        image_flops(find_geometry("flux.1-dev"), networks, load_config())
