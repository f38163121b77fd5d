"""The cache over steps: what it computes, what it guesses, and that nothing is left of it."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import nn

from calibri.config import SamplingConfig, load_config
from calibri.errors import UnsupportedModelError
from calibri.pipelines.networks import networks_of
from calibri.prompts.files import make_prompts
from calibri.results import Fidelity
from calibri.runs.session import Session
from calibri.sampling.branches import BranchResolver
from calibri.sampling.sampler import Noise, Sampler
from calibri.sampling.scales.scaler import Scaler
from calibri.sampling.step_cache import check_cache, step_cache
from calibri.scoring.units import make_unit
from tests.sampling.pipelines import CASES, Decoder

NOISES = [
    Noise(prompt, 5 + i)
    for i, prompt in enumerate(make_prompts(["a red circle", "a blue square", "a green cross"]))
]
CACHED = Fidelity(cache_interval=2)


class Timed(nn.Module):
    """Returns what a function makes of its timestep, and counts its calls."""

    def __init__(self, value, wrap=lambda tensor: (tensor,)):
        super().__init__()
        self.value, self.wrap, self.calls = value, wrap, 0

    def forward(self, hidden_states, timestep, branch=0):
        self.calls += 1
        return self.wrap(torch.full((2, 3), self.value(float(timestep[0]), branch)))


def networks(*transformers):
    return tuple(SimpleNamespace(transformer=transformer) for transformer in transformers)


def run(model, times, interval, branches=(0,)):
    found = []
    with step_cache(networks(model), interval):
        for time in times:
            timestep = torch.tensor([time, time])
            found.append([model(None, timestep=timestep, branch=branch) for branch in branches])
    return found


TIMES = [1000.0, 900.0, 750.0, 600.0, 500.0, 100.0]


@pytest.mark.parametrize(("interval", "calls"), [(1, 6), (2, 3), (3, 2), (6, 1), (50, 1)])
def test_the_first_and_every_so_many_th_step_is_computed(interval, calls):
    model = Timed(lambda time, branch: time**2)
    found = [output[0][0, 0].item() for (output,) in run(model, TIMES, interval)]
    assert model.calls == calls
    for step in range(0, len(TIMES), interval):
        assert found[step] == TIMES[step] ** 2


def test_between_them_it_is_linear_in_the_timestep():
    """With one output known it stays; with two the line through them is exact for a line."""
    found = run(Timed(lambda time, branch: 3 * time + 7), TIMES, 2)
    values = [output[0][0, 0].item() for (output,) in found]
    exact = [3 * time + 7 for time in TIMES]
    assert values == pytest.approx([exact[0], exact[0], *exact[2:]], rel=1e-6)


def test_branches_of_guidance_that_run_one_after_the_other_are_kept_apart():
    model = Timed(lambda time, branch: (5 if branch else -1) * time)
    found = run(model, TIMES, 2, branches=(0, 1))
    assert model.calls == 6
    for time, (conditional, unconditional) in list(zip(TIMES, found, strict=True))[2:]:
        assert conditional[0][0, 0].item() == pytest.approx(-time)
        assert unconditional[0][0, 0].item() == pytest.approx(5 * time)


def test_each_transformer_counts_its_own_steps():
    high, low = (Timed(lambda time, branch: time) for _ in range(2))
    with step_cache(networks(high, low), 2):
        for time in TIMES:
            (high if time > 700 else low)(None, timestep=torch.tensor([time]))
    assert (high.calls, low.calls) == (2, 2)


@pytest.mark.parametrize(
    ("wrap", "tensor"),
    [
        (lambda t: t, lambda out: out),
        (lambda t: ([t, t],), lambda out: out[0][1]),
        (lambda t: Transformer2DModelOutput(sample=t), lambda out: out.sample),
        (lambda t: (t.bfloat16(), torch.tensor(3), None), lambda out: out[0]),
    ],
)
def test_outputs_of_every_structure_are_guessed(wrap, tensor):
    found = run(Timed(lambda time, branch: time, wrap), [8.0, 6.0, 4.0, 2.0], 2)
    (last,) = found[-1]
    assert type(last) is type(found[0][0])
    assert tensor(last)[0, 0].item() == 2.0
    if isinstance(last, tuple) and len(last) == 3:
        assert last[0].dtype == torch.bfloat16
        assert (last[1].item(), last[2]) == (3, None)


def test_a_pipeline_may_write_into_what_it_gets():
    model = Timed(lambda time, branch: time)
    with step_cache(networks(model), 2):
        for time in (8.0, 6.0):
            (output,) = model(None, timestep=torch.tensor([time]))
            assert output[0, 0].item() == 8.0
            output.zero_()


def test_a_transformer_without_timesteps_is_refused():
    with pytest.raises(UnsupportedModelError, match="Linear takes none of timestep"):
        check_cache(networks(nn.Linear(2, 2)))


@pytest.fixture(scope="module")
def session():
    values = {"device": "cpu", "sampling.num_inference_steps": 6, "space.granularity": "block"}
    return Session(load_config(values=values))


def candidates(session, count, scale=0.3):
    rng = np.random.default_rng(3)
    start = session.space.start
    return [
        session.space.coefficients(start + scale * rng.normal(size=len(start)))
        for _ in range(count)
    ]


def test_with_no_step_left_out_images_are_identical(session):
    candidate = candidates(session, 1)[0]
    one = Fidelity(num_inference_steps=1)
    whole = session.sample(candidate, NOISES, one)
    assert torch.equal(session.sample(candidate, NOISES, one.updated(CACHED)), whole)
    expected = session.sample(candidate, NOISES)
    with step_cache(networks_of(session.bench.pipe), 1):
        assert torch.equal(session.sample(candidate, NOISES), expected)


def test_cached_images_are_near_and_nothing_is_left_of_the_cache(session):
    candidate = candidates(session, 1)[0]
    before = session.sample(candidate, NOISES)
    cached = session.sample(candidate, NOISES, CACHED)
    error = (cached.float() - before.float()).abs().mean()
    assert 0 < error < 12
    assert torch.equal(session.sample(candidate, NOISES), before)
    assert "forward" not in vars(session.bench.pipe.transformer)
    # No state passes from one call of the pipeline to the next.
    session.sample(candidate, NOISES[:2], CACHED.updated(Fidelity(num_inference_steps=5)))
    assert torch.equal(session.sample(candidate, NOISES, CACHED), cached)


def test_the_cache_is_gone_when_the_pipeline_fails(session):
    model = session.bench.pipe.transformer

    def fail(module, args, kwargs):
        raise KeyboardInterrupt

    handle = model.register_forward_pre_hook(fail, with_kwargs=True)
    with pytest.raises(KeyboardInterrupt):
        session.sample(candidates(session, 1)[0], NOISES, CACHED)
    handle.remove()
    assert "forward" not in vars(model)


def test_candidates_of_one_batch_keep_their_own_scales(session):
    """Rows are guessed from their own past alone, with the scales that made it."""
    ours = candidates(session, 3)
    rows = [(c, noise) for c in range(3) for noise in NOISES]
    fidelity = session.bench.sampler.full.updated(CACHED)
    unit = make_unit(ours, rows, (), fidelity)
    together = session.bench.sample(unit, rows).pixels.reshape(3, 3, 3, 24, 24)
    for candidate, images in zip(ours, together, strict=True):
        alone = session.sample(candidate, NOISES, CACHED)
        assert (alone.int() - images.int()).abs().max() <= 1
    assert (together[0].int() - together[1].int()).abs().float().mean() > 1


def test_a_silenced_output_is_silent_through_the_cache(session):
    """The output weight multiplies guesses as it multiplies what they are made of."""
    start = session.space.coefficients(session.space.start)
    vector = session.space.start.copy()
    vector[session.space.is_output] = 0.0
    zero = session.space.coefficients(vector)
    expected = session.sample(zero, NOISES)
    assert torch.equal(session.sample(zero, NOISES, CACHED), expected)
    assert not torch.equal(session.sample(start, NOISES, CACHED), expected)


def test_members_of_an_ensemble_are_cached_together():
    values = {"device": "cpu", "sampling.num_inference_steps": 4, "space.members": 2}
    session = Session(load_config(values=values | {"space.granularity": "block"}))
    candidate = candidates(session, 1, scale=0.1)[0]
    before = session.sample(candidate, NOISES)
    with step_cache(networks_of(session.bench.pipe), 1):
        assert torch.equal(session.sample(candidate, NOISES), before)
    assert not torch.equal(session.sample(candidate, NOISES, CACHED), before)
    assert torch.equal(session.sample(candidate, NOISES), before)


def test_guidance_in_one_batch_is_cached():
    values = {"device": "cpu", "sampling.num_inference_steps": 4, "sampling.guidance_scale": 3.0}
    values |= {"space.granularity": "block", "space.branches": "separate"}
    session = Session(load_config(values=values))
    one, other = candidates(session, 2, scale=0.02)
    before = session.sample(one, NOISES)
    cached = session.sample(one, NOISES, CACHED)
    assert not torch.equal(cached, before)
    assert not torch.equal(session.sample(other, NOISES, CACHED), cached)
    assert torch.equal(session.sample(one, NOISES), before)


@pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning")
@pytest.mark.parametrize("name", ["Flux", "QwenImage", "ZImage", "Lumina2", "Chroma"])
def test_guided_pipelines_of_every_layout_are_cached(name):
    """Branches in one batch, one after the other, and lists of rows with other names."""
    case = next(case for case in CASES if case.id == name)
    size = {name: case.call[name] for name in ("height", "width")}
    config = SamplingConfig(num_inference_steps=4, **size, **{case.guidance: 3.0})
    sampler = Sampler(case.build(vae=Decoder()), config)
    resolver = BranchResolver(sampler.pipe)
    sampler.before_call = resolver.expect
    scaler = Scaler(sampler.pipe.transformer, resolver)
    scales = torch.ones(len(NOISES), 2, len(scaler.sites) + 1)
    scales[1, 0] = 0.5
    scaler.set(scales)
    whole = sampler.sample(NOISES)
    calls = []
    blocks = scaler.transformer.get_submodule(scaler.sites[0].block)
    handle = blocks.register_forward_hook(lambda *_: calls.append(1))
    cached = sampler.sample(NOISES, CACHED)
    half = len(calls)
    sampler.sample(NOISES)
    handle.remove()
    assert len(calls) - half == 2 * half
    assert not torch.equal(cached, whole)
    with step_cache(networks_of(sampler.pipe), 1):
        assert torch.equal(sampler.sample(NOISES), whole)
    assert torch.equal(sampler.sample(NOISES), whole)


@pytest.mark.parametrize("branches", [(0,), (0, 1)])
def test_equal_timesteps_of_two_steps_are_two_steps(branches):
    """Timesteps in half precision are rounded."""
    model = Timed(lambda time, branch: time**2 + branch)
    times = [1000.0, 900.0, 900.0, 700.0, 600.0, 600.0]
    found = run(model, times, 2, branches)
    assert model.calls == 3 * len(branches)
    for step in (0, 2, 4):
        values = [output[0][0, 0].item() for output in found[step]]
        assert values == [times[step] ** 2 + branch for branch in branches]
