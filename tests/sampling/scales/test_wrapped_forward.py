"""A forward is run through a function while there is one, and given back."""

import torch
from torch import nn

from calibri.sampling.scales.wrapped_forward import WrappedForward


def twice(forward, args, kwargs):
    return forward(*args, **kwargs) + forward(*args, **kwargs)


def test_a_forward_is_run_through_a_function_while_there_is_one():
    module, one = nn.Identity(), torch.ones(1)
    wrapped = WrappedForward(module)
    assert "forward" not in vars(module)
    wrapped.run_through(twice)
    assert module(one) == 2
    wrapped.run_through(None)
    assert module(one) == 1
    wrapped.run_through(twice)
    assert module(input=one) == 2  # and not four: it was wrapped once
    wrapped.remove()
    assert "forward" not in vars(module)
    assert module(one) == 1


def test_what_another_library_set_before_is_given_back():
    module = nn.Identity()
    theirs = lambda value: value * 10  # noqa: E731
    module.forward = theirs
    wrapped = WrappedForward(module)
    wrapped.run_through(twice)
    assert module(torch.ones(1)) == 20
    wrapped.remove()
    assert module.forward is theirs


def test_what_was_wrapped_around_ours_since_then_stays():
    module = nn.Identity()
    wrapped = WrappedForward(module)
    wrapped.run_through(twice)
    ours = module.forward
    module.forward = lambda value: ours(value) * 10
    wrapped.remove()
    assert module(torch.ones(1)) == 10
