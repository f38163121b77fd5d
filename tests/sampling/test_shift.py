"""A factor on the shift is the scheduler that one would have made with that shift."""

import copy
import inspect
import math

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from calibri.errors import UnsupportedModelError
from calibri.sampling.shift import change_shift, changed_shift
from tests.tiny import tiny_flux


class Pipe:
    """As much of a pipeline as has a schedule."""

    def __init__(self, scheduler):
        self.scheduler = scheduler

    def sigmas(self, **arguments):
        self.scheduler.set_timesteps(5, **arguments)
        return self.scheduler.sigmas


@settings(max_examples=30, deadline=None)
@given(shift=st.floats(0.3, 6), factor=st.floats(0.2, 5))
def test_a_fixed_shift_is_multiplied(shift, factor):
    pipe = Pipe(FlowMatchEulerDiscreteScheduler(shift=shift))
    stock = Pipe(FlowMatchEulerDiscreteScheduler(shift=shift * factor))
    with changed_shift(pipe, factor):
        assert torch.equal(pipe.sigmas(), stock.sigmas())


@settings(max_examples=30, deadline=None)
@given(mu=st.floats(0.1, 2), factor=st.floats(0.2, 5))
def test_a_shift_of_the_image_size_is_multiplied(mu, factor):
    pipe = Pipe(FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True))
    # exp(mu) is the shift: the schedule of a fixed one, from the same unshifted noise levels.
    levels = torch.linspace(1, 0.2, 5).tolist()
    fixed = Pipe(FlowMatchEulerDiscreteScheduler(shift=math.exp(mu) * factor))
    with changed_shift(pipe, factor):
        found = pipe.sigmas(mu=mu, sigmas=levels)
    torch.testing.assert_close(found, fixed.sigmas(sigmas=levels), rtol=1e-5, atol=1e-6)


def test_a_linear_shift_of_the_image_size_is_multiplied():
    options = dict(use_dynamic_shifting=True, time_shift_type="linear")
    pipe = Pipe(FlowMatchEulerDiscreteScheduler(**options))
    stock = Pipe(FlowMatchEulerDiscreteScheduler(**options))
    with changed_shift(pipe, 3.0):
        assert torch.equal(pipe.sigmas(mu=0.75), stock.sigmas(mu=2.25))


def test_the_scheduler_is_what_it_was_and_a_factor_of_one_leaves_it():
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipe, before = Pipe(scheduler), dict(vars(scheduler))
    with changed_shift(pipe, 1.0):
        assert vars(scheduler) == before
    with changed_shift(pipe, 2.0):
        assert pipe.scheduler is scheduler
        assert scheduler.shift == 6.0
        pipe.sigmas()
    assert scheduler.shift == 3.0
    assert vars(scheduler).keys() == before.keys()
    assert all(value is before[name] for name, value in vars(scheduler).items())


@pytest.mark.parametrize("dynamic", [False, True])
def test_pipelines_with_one_scheduler_have_one_shift(dynamic):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=dynamic)
    pipe, other = Pipe(scheduler), Pipe(scheduler)
    mu = {"mu": 0.5} if dynamic else {}
    before = other.sigmas(**mu)
    with changed_shift(pipe, 2.0):
        made_meanwhile = Pipe(pipe.scheduler)
        assert torch.equal(other.sigmas(**mu), pipe.sigmas(**mu))
        assert not torch.equal(other.sigmas(**mu), before)
    for one in (pipe, other, made_meanwhile):
        assert torch.equal(one.sigmas(**mu), before)


@pytest.mark.parametrize("dynamic", [False, True])
def test_what_is_saved_meanwhile_is_the_original_scheduler(dynamic, tmp_path):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=dynamic)
    with changed_shift(Pipe(scheduler), 2.0):
        scheduler.save_pretrained(tmp_path)
        made = type(scheduler).from_config(scheduler.config)
    saved = FlowMatchEulerDiscreteScheduler.from_pretrained(tmp_path)
    assert all(scheduler.config[name] == value for name, value in saved.config.items())
    assert saved.shift == made.shift == 3.0


def test_a_changed_scheduler_is_what_pipelines_expect(pipe):
    options = dict(pipe.scheduler.config, use_dynamic_shifting=True)
    pipe.scheduler = before = FlowMatchEulerDiscreteScheduler.from_config(options)
    known = inspect.signature(before.set_timesteps)
    with changed_shift(pipe, 2.0):
        assert inspect.signature(pipe.scheduler.set_timesteps) == known
        assert pipe.config["scheduler"] == ("diffusers", "FlowMatchEulerDiscreteScheduler")
        # A copy has a schedule of its own.
        other = copy.deepcopy(pipe.scheduler)
        other.set_timesteps(5, mu=0.5)
        assert (len(other.timesteps), len(pipe.scheduler.timesteps)) == (5, 1000)


@pytest.mark.parametrize(
    ("pipe", "said"),
    [(Pipe(DDIMScheduler()), "Pipe has a DDIMScheduler"), (tiny_flux(), "has no scheduler")],
)
def test_another_scheduler_is_refused_by_name(pipe, said):
    with pytest.raises(UnsupportedModelError, match=said):
        change_shift(pipe, 2.0)
