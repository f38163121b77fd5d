"""Compiled transformers sample what the plain ones do, and candidates compile nothing again."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from calibri.config import SamplingConfig
from calibri.errors import ConfigError
from calibri.pipelines.loading import load_pipeline
from calibri.pipelines.networks import networks_of
from calibri.prompts.files import make_prompts
from calibri.results import Fidelity
from calibri.sampling.branches import BranchResolver
from calibri.sampling.sampler import Noise, Sampler
from calibri.sampling.scales.scaler import Scaler
from calibri.scoring.compilation import compile_transformers

PROMPTS = make_prompts(["a red circle", "two small green triangles"])
NOISES = [Noise(prompt, 10 + i) for i, prompt in enumerate(PROMPTS)]


@pytest.fixture
def counter():
    torch._dynamo.reset()
    yield CompileCounter()
    torch._dynamo.reset()


def hooked(scale):
    """A sampler and the hooks of its transformer."""
    pipe = load_pipeline("shapes", device="cpu")
    sampler = Sampler(pipe, SamplingConfig(num_inference_steps=2, guidance_scale=scale))
    resolver = BranchResolver(pipe) if sampler.guided else None
    if resolver is not None:
        sampler.before_call = resolver.expect
    return sampler, Scaler(networks_of(pipe), resolver)


def candidates(scaler, branches):
    """Scales of four candidates, one for each row and branch."""
    generator = torch.Generator().manual_seed(0)
    shape = (4, len(NOISES), branches, len(scaler.sites) + 1)
    return 0.8 + 0.4 * torch.rand(shape, generator=generator)


@pytest.mark.slow
@pytest.mark.parametrize(("scale", "branches"), [(1.0, 1), (3.0, 2)])
def test_candidates_compile_nothing_again_and_images_stay(counter, scale, branches):
    plain, ours = hooked(scale), hooked(scale)
    compile_transformers(ours[0].pipe, backend=counter)
    once = counter.frame_count
    compiled = []
    for scales in candidates(ours[1], branches):
        images = []
        for sampler, scaler in (plain, ours):
            scaler.set(scales)
            images.append(sampler.sample(NOISES).int())
        assert (images[0] - images[1]).abs().max() <= 1
        compiled.append(counter.frame_count - once)
    assert compiled[0] > 0
    assert set(compiled) == {compiled[0]}


@pytest.mark.slow
def test_a_cache_over_steps_compiles_nothing_again(counter):
    """It is seen from outside of the blocks alone, in which is what was compiled."""
    plain, ours = hooked(1.0), hooked(1.0)
    compile_transformers(ours[0].pipe, backend=counter)
    whole = Fidelity(num_inference_steps=4)
    cached = whole.updated(Fidelity(cache_interval=2))
    compiled = set()
    for fidelity in (whole, cached, whole, cached):
        images = [sampler.sample(NOISES, fidelity).int() for sampler, _ in (plain, ours)]
        assert (images[0] - images[1]).abs().max() <= 1
        compiled.add(counter.frame_count)
    assert len(compiled) == 1


def test_a_platform_without_a_compiler_is_told_what_to_do():
    def missing(graph, inputs):
        raise RuntimeError("no C++ compiler was found")

    with pytest.raises(ConfigError, match=r"no C\+\+ compiler was found.*sampling.compile"):
        compile_transformers(load_pipeline("shapes", device="cpu"), backend=missing)
    torch._dynamo.reset()
