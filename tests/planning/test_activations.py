"""What a gradient keeps, counted without weights, against what is kept by one that is taken."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from calibri.planning.costs import plan
from calibri.runs.session import Session
from tests.tiny import tiny_run

STEPS = 3


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_count_is_what_autograd_keeps(guidance: float) -> None:
    sampling = {"num_inference_steps": STEPS, "guidance_scale": guidance}
    planned = plan(search={"method": "gradient"}, sampling=sampling, dtype="float32").gradient
    assert planned is not None
    kept = kept_gigabytes(guidance)
    # The sampler's own arithmetic comes on top.
    assert planned.all_steps == pytest.approx(kept, rel=0.1)
    assert planned.one_step < 1.1 * planned.all_steps / STEPS
    assert planned.one_block < planned.one_step


def kept_gigabytes(guidance: float) -> float:
    """What is held for the backward of one image of the shipped pipeline, weights not counted."""
    config = tiny_run({"sampling.num_inference_steps": STEPS, "sampling.guidance_scale": guidance})
    session = Session(config)
    bench, held = session.bench, {}

    def hold(tensor: Tensor) -> Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    for part in bench.pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.requires_grad_(False)
    places = len(bench.scaler.sites) + 1
    with torch.autograd.graph.saved_tensors_hooks(hold, lambda kept: kept):
        bench.scaler.set(torch.ones(1, 1, places, requires_grad=True))
        images = bench.sampler.sample_with_gradient(
            session.noises("test", 0, session.prompts.train[:1])
        )
    assert images.requires_grad
    known = {weight.untyped_storage().data_ptr() for weight in weights_of(bench.pipe)}
    own = [tensor for place, tensor in held.items() if place not in known]
    return sum(tensor.untyped_storage().nbytes() for tensor in own) / 1e9


def weights_of(pipe: object) -> list[Tensor]:
    parts = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    return [weight for part in parts for weight in part.parameters()]


def test_a_search_without_gradients_keeps_nothing() -> None:
    assert plan().gradient is None


@pytest.mark.parametrize("steps", [2, 8])
def test_only_all_steps_at_once_grow_with_the_steps(steps: int) -> None:
    sampling = {"num_inference_steps": steps}
    planned = plan(search={"method": "gradient"}, sampling=sampling).gradient
    single = plan(search={"method": "gradient"}, sampling={"num_inference_steps": 1}).gradient
    assert planned is not None
    assert single is not None
    assert planned.all_steps > 0.95 * steps * single.all_steps
    assert planned.one_step < (1 + 0.02 * (steps - 1)) * single.one_step
    last = plan(search={"method": "gradient", "last_steps": 1}, sampling=sampling).gradient
    assert last == single
