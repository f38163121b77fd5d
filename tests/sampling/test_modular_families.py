"""Families that exist in blocks alone: what works with each, and the words for what does not."""

import diffusers
import pytest
import torch

import calibri
from calibri.coefficients.space import SearchSpace
from calibri.config import SamplingConfig
from calibri.errors import ConfigError, UnsupportedModelError
from calibri.pipelines.networks import sites_of
from calibri.sampling.call import GivenSettings, PipelineCall
from calibri.sampling.modular import pictures_of
from calibri.sampling.sampler import Sampler
from tests.pipelines.zoo import QUIET, ZOO
from tests.sampling.modular import CASES

pytestmark = QUIET

TRANSFORMERS = {
    "Flux3AutoBlocks": "Flux3Transformer2DModel",
    "Flux3DistilledAutoBlocks": "Flux3Transformer2DModel",
    "AnimaAutoBlocks": "CosmosTransformer3DModel",
    "MiniMaxH3Blocks": "MiniMaxH3Transformer3DModel",
    "WanAnimate2Blocks": "WanAnimate2Transformer3DModel",
    "EchoBlocks": "LTX2VideoTransformer3DModel",
    "MiniMaxMusic3Blocks": "MiniMaxMusic3Transformer1DModel",
}
# What cannot be searched or sampled from a prompt, and what says so.
REFUSED = {
    "WanAnimate2Blocks": "with driving_video",
    "EchoBlocks": "fixed list",
    "MiniMaxMusic3Blocks": "neither images nor videos but audios",
}
every_family = pytest.mark.parametrize("name", TRANSFORMERS)


def build(name):
    specimen = next(s for s in ZOO if s.model_class == TRANSFORMERS[name])
    pipe = getattr(diffusers, name)().init_pipeline()
    pipe.update_components(transformer=specimen.model())
    return pipe, specimen.draw(1)


def run(pipe, inputs):
    with torch.no_grad():
        output = pipe.transformer(**inputs, return_dict=False)[0]
    return output[0] if isinstance(output, list | tuple) else output


@every_family
def test_a_calibration_loads_acts_fuses_and_comes_off(name):
    pipe, inputs = build(name)
    expected = run(pipe, inputs)
    space = SearchSpace.build(sites_of(pipe), "block")
    loaded = calibri.load(pipe, space.coefficients(space.start * 1.2))
    scaled = run(pipe, inputs)
    assert not torch.allclose(scaled, expected, rtol=1e-3)
    loaded.fuse()
    torch.testing.assert_close(run(pipe, inputs), scaled, rtol=1e-4, atol=1e-4)
    loaded.unload()
    assert torch.equal(run(pipe, inputs), expected)


@every_family
def test_what_it_cannot_be_searched_for_is_said(name):
    pipe, _ = build(name)
    if name not in REFUSED:
        assert PipelineCall(pipe, GivenSettings()).accepted
        assert pictures_of(pipe) in ("images", "videos")
        return
    with pytest.raises(UnsupportedModelError, match=REFUSED[name]):
        PipelineCall(pipe, GivenSettings())


def test_one_prompt_a_call_is_asked_for():
    pipe, _ = build("Flux3AutoBlocks")
    with pytest.raises(ConfigError, match="batch_size to 1"):
        Sampler(pipe, SamplingConfig(batch_size=2))
    Sampler(pipe, SamplingConfig(batch_size=1)).remove()


def test_families_in_blocks_are_listed_with_their_guidance():
    listed = {status.name: status for status in calibri.models(sorted(set(TRANSFORMERS.values())))}
    assert all(status.status == "table" for status in listed.values())
    guided = {case.transformer for case in CASES if case.guided} & set(TRANSFORMERS.values())
    assert all(listed[name].guidance for name in guided)
