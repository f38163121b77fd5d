"""The sampler as a policy: its steps are Gaussians, its images are distributed as without noise."""

import math

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from hypothesis import given
from hypothesis import strategies as st

from calibri.config import SamplingConfig
from calibri.errors import ConfigError, UnsupportedModelError
from calibri.prompts import make_prompts
from calibri.sampling.sampler import Noise, Sampler
from calibri.sampling.scales.scaler import Scaler
from calibri.sampling.sde import Rollouts, Transition, transition

levels = st.floats(0.01, 1.0)


def tensor(value):
    return torch.tensor(value, dtype=torch.float32)


@given(st.integers(0, 99), st.floats(0.01, 10.0))
def test_log_densities_and_divergences_are_those_of_gaussians(seed, std):
    generator = torch.Generator().manual_seed(seed)
    mean, other, x = (torch.randn(3, 2, 4, generator=generator) for _ in range(3))
    step = Transition(mean, tensor(std))
    by_hand = -((x - mean) ** 2) / (2 * std**2) - math.log(std) - 0.5 * math.log(2 * math.pi)
    torch.testing.assert_close(step.log_prob(x), by_hand.mean(dim=(1, 2)))
    oracle = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, std), torch.distributions.Normal(other, std)
    )
    torch.testing.assert_close(step.divergence(Transition(other, tensor(std))), oracle.mean((1, 2)))


@given(levels, st.floats(0.0, 0.9), st.integers(0, 99))
def test_without_noise_a_step_is_the_schedulers(sigma, share, seed):
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=[sigma, share * sigma])
    generator = torch.Generator().manual_seed(seed)
    velocity, latents = (torch.randn(2, 3, generator=generator) for _ in range(2))
    wanted = scheduler.step(velocity, scheduler.timesteps[0], latents).prev_sample
    made = transition(velocity, latents, *scheduler.sigmas[:2], 0.0, tensor(0.9))
    torch.testing.assert_close(made.mean, wanted)
    assert float(made.std) == 0


def walked(mean, spread, noise_level, shift, steps=400, count=40_000):
    """Data of a Gaussian, for which the velocity is known: latents at every noise level.

    They start a little below pure noise: there the noise of a step grows without bound, so that
    steps of any length make an error, of a fourth power of the noise level.
    """
    sigmas = torch.linspace(0.9, 0, steps + 1)
    sigmas = shift * sigmas / (1 + (shift - 1) * sigmas)
    generator = torch.Generator().manual_seed(0)
    first = float(sigmas[0])
    begin = math.hypot((1 - first) * spread, first)
    x = (1 - first) * mean + begin * torch.randn(count, 1, generator=generator)
    for now, then in zip(sigmas[:-1], sigmas[1:], strict=True):
        variance = ((1 - now) * spread) ** 2 + now**2
        centred = x - (1 - now) * mean
        # Expected noise minus expected data, given the latents.
        velocity = now / variance * centred - (mean + (1 - now) * spread**2 / variance * centred)
        step = transition(velocity, x, now, then, noise_level, sigmas[1])
        x = step.mean + step.std * torch.randn(x.shape, generator=generator)
        yield float(then), x


@pytest.mark.parametrize("noise_level", [0.0, 0.3, 0.7, 0.9])
@pytest.mark.parametrize(("mean", "spread", "shift"), [(1.5, 0.5, 1.0), (-0.5, 1.2, 3.0)])
def test_at_every_noise_level_latents_are_distributed_as_without_noise(
    mean, spread, shift, noise_level
):
    for sigma, x in walked(mean, spread, noise_level, shift):
        wanted = math.hypot((1 - sigma) * spread, sigma)
        assert float(x.mean()) == pytest.approx((1 - sigma) * mean, abs=0.03)
        assert float(x.std()) == pytest.approx(wanted, abs=0.03)


STEPS = 3


def noises(count, first=0):
    prompts = make_prompts(["a red circle", "two small green triangles", "a blue square"])
    return [Noise(prompts[i % 3], first + i) for i in range(count)]


def rollouts(pipe, noise_level=0.7, **config):
    sampler = Sampler(pipe, SamplingConfig(num_inference_steps=STEPS, **config))
    return Rollouts(sampler, noise_level), sampler


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_little_noise_changes_little(pipe, guidance):
    own, sampler = rollouts(pipe, 1e-6, guidance_scale=guidance)
    images, broken, paths = own.sample(noises(2))
    plain = sampler.sample(noises(2))
    assert len(paths) == STEPS
    assert not broken.any()
    assert (images.short() - plain.short()).abs().max() <= 1


def test_an_image_does_not_depend_on_its_neighbours_and_the_pipeline_stays_as_it_was(pipe):
    own, sampler = rollouts(pipe)
    before = sampler.sample(noises(1))
    together, _, paths = own.sample(noises(3))
    alone, _, path = own.sample(noises(3)[1:2])
    assert (together[1:2].short() - alone.short()).abs().max() <= 1
    torch.testing.assert_close(paths.rows([1]).reached, path.reached, rtol=1e-4, atol=1e-4)
    assert not torch.equal(together[:1], before)
    assert torch.equal(sampler.sample(noises(1)), before)
    assert "step" not in vars(pipe.scheduler)


def followed(own, chosen, paths, shift=1.0):
    found = []
    own.follow(chosen, paths, lambda index, step: found.append(step), shift)
    return [step.log_prob(paths.reached[i]) for i, step in enumerate(found)]


@pytest.mark.parametrize("shift", [1.0, 2.0])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_along_the_same_path_the_same_model_is_as_likely_to_go(pipe, guidance, shift):
    own, _ = rollouts(pipe, guidance_scale=guidance)
    _, _, paths = own.sample(noises(2), shift)
    again = followed(own, noises(2), paths, shift)
    assert len(again) == STEPS - 1
    for before, after in zip(paths.log_probs, again, strict=False):
        torch.testing.assert_close((after - before).exp(), torch.ones(2), rtol=1e-6, atol=1e-6)


def test_its_slope_along_the_scales_is_that_of_differences(pipe):
    own, _ = rollouts(pipe)
    scaler = Scaler(pipe)
    table = torch.ones(1, 1, len(scaler.sites) + 1)
    scaler.set(table)
    _, _, paths = own.sample(noises(1))

    def total(scales):
        scaler.set(scales)
        return sum(followed(own, noises(1), paths)).sum()

    leaf = table.clone().requires_grad_()
    total(leaf).backward()
    direction = torch.randn(table.shape, generator=torch.Generator().manual_seed(1))
    direction /= direction.norm()
    size = 1e-2
    ends = [float(total(table + sign * size * direction).detach()) for sign in (1, -1)]
    wanted = (ends[0] - ends[1]) / (2 * size)
    assert float((leaf.grad * direction).sum()) == pytest.approx(wanted, rel=0.02, abs=1e-4)


def test_what_has_no_such_steps_is_refused(pipe):
    with pytest.raises(ConfigError, match="2 or more"):
        Rollouts(Sampler(pipe, SamplingConfig(num_inference_steps=1)))
    pipe.scheduler = DDIMScheduler()
    with pytest.raises(UnsupportedModelError, match="DDIMScheduler that does others"):
        rollouts(pipe)
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)
    with pytest.raises(UnsupportedModelError, match="does others"):
        rollouts(pipe)
