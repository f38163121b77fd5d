"""Policy gradients: of groups of images, with respect to the scales of a candidate."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from calibri.coefficients.space import SearchSpace
from calibri.errors import RewardError
from calibri.pipelines.networks import sites_of
from calibri.prompts import make_prompts
from calibri.results import FULL
from calibri.sampling.sampler import Noise
from calibri.sampling.sde import Rollouts
from calibri.scoring.policy import PolicyDifferentiator, advantages, policy_loss
from calibri.scoring.units import Unit, make_unit
from tests.fakes import bench_of, brightness

groups = arrays(np.float64, (3, 6), elements=st.floats(-10, 10))


@given(groups)
def test_advantages_are_standard_scores_within_a_prompt(rewards):
    found = advantages(torch.from_numpy(rewards)).double().numpy()
    wanted = (rewards - rewards.mean(1, keepdims=True)) / (rewards.std(1, keepdims=True) + 1e-4)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


@given(groups)
def test_with_the_spread_of_all_rewards_prompts_of_little_difference_say_less(rewards):
    spread = torch.tensor(rewards.std())
    found = advantages(torch.from_numpy(rewards), spread).double().numpy()
    wanted = (rewards - rewards.mean(1, keepdims=True)) / (rewards.std() + 1e-4)
    np.testing.assert_allclose(found, wanted.clip(-5, 5), rtol=1e-5, atol=1e-5)


def test_images_that_are_all_alike_say_nothing():
    assert advantages(torch.full((2, 4), 3.7)).abs().max() == 0


@given(st.floats(-3, 3), st.floats(-0.5, 0.5), st.floats(1e-4, 0.3))
def test_the_loss_is_clipped_where_the_policy_has_gone_far_enough(advantage, moved, clip_range):
    log_probs = torch.tensor([moved], dtype=torch.float64, requires_grad=True)
    weight = torch.tensor([advantage], dtype=torch.float64)
    policy_loss(log_probs, torch.zeros(1, dtype=torch.float64), weight, clip_range).backward()
    ratio = float(np.exp(moved))
    gone = (advantage > 0 and ratio > 1 + clip_range) or (advantage < 0 and ratio < 1 - clip_range)
    assert float(log_probs.grad) == pytest.approx(0 if gone else -advantage * ratio, abs=1e-12)


LEVEL = 0.7


def made(pipe, functions, count=4, **sections):
    bench = bench_of(
        pipe, functions, sampling={"num_inference_steps": 3, "batch_size": 8}, **sections
    )
    space = SearchSpace.build(sites_of(pipe), "gate")
    candidate = space.coefficients(space.start * 1.05)
    prompts = make_prompts(["a red circle", "two small green triangles"])
    rows = [(0, Noise(prompt, seed)) for prompt in prompts for seed in range(count)]
    unit = make_unit([candidate], rows, list(functions), FULL, "policy", noise_level=LEVEL)
    return bench, unit


def result(bench, unit):
    ((_, found),) = PolicyDifferentiator(bench).run([(0, unit)])
    return found


def test_a_unit_is_the_same_after_it_was_sent(pipe):
    _, unit = made(pipe, {"x": brightness})
    again = Unit.from_json(unit.to_json())
    assert again == unit
    assert again.digest == unit.digest
    other = make_unit(unit.candidates, unit.rows, ["x"], FULL, "policy", noise_level=0.5)
    assert other.digest != unit.digest


def test_the_gradient_is_that_of_each_image_times_its_advantage(pipe):
    bench, unit = made(pipe, {"x": brightness})
    found = result(bench, unit)
    scores = torch.tensor(found["scores"]["x"]).view(2, 4)
    assert scores.std(dim=1).min() > 0
    table = torch.from_numpy(unit.candidates[0].site_scales(bench.scaler.sites)).float()
    rollouts, total = Rollouts(bench.sampler, LEVEL), torch.zeros_like(table)
    for (_, noise), weight in zip(unit.rows, advantages(scores).flatten(), strict=True):
        bench.scaler.set(table[None])
        _, _, paths = rollouts.sample([noise])
        leaf, likely = table[None].clone().requires_grad_(), []
        bench.scaler.set(leaf)
        rollouts.follow(
            [noise],
            paths,
            lambda i, step, paths=paths, likely=likely: likely.append(
                step.log_prob(paths.reached[i])
            ),
        )
        (gradient,) = torch.autograd.grad(weight * torch.cat(likely).mean(), leaf)
        total += gradient[0]
    assert total.abs().max() > 1e-3
    torch.testing.assert_close(
        torch.tensor(found["gradients"]["x"]).float(), total, rtol=1e-3, atol=1e-4
    )


def test_it_is_the_same_in_parts_that_fit(pipe):
    bench, unit = made(pipe, {"x": brightness})
    whole = result(bench, unit)
    parted = PolicyDifferentiator(bench)
    parted._sampling.size, parted._following.size = 3, 2
    ((_, found),) = parted.run([(0, unit)])
    np.testing.assert_allclose(found["scores"]["x"], whole["scores"]["x"], rtol=1e-3)
    np.testing.assert_allclose(
        np.array(found["gradients"]["x"]), whole["gradients"]["x"], rtol=1e-2, atol=1e-3
    )
    assert parted.batch_size == 2


def failing(images, prompts):
    scores = brightness(images, prompts)
    scores[0] = torch.nan
    return scores


def test_a_score_that_fails_is_refused_or_left_out(pipe):
    bench, unit = made(pipe, {"x": failing})
    with pytest.raises(RewardError, match="1 of 8 images failed"):
        result(bench, unit)
    bench.close()
    bench, unit = made(pipe, {"x": failing}, rewards={"on_failure": "drop"})
    found = result(bench, unit)
    assert found["scores"]["x"][0] is None
    assert np.isfinite(found["gradients"]["x"]).all()
    assert np.any(found["gradients"]["x"])
