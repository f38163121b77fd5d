"""Ensembles: one forward as the weighted sum of members, against members run one at a time."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from calibri.errors import GuidanceError
from calibri.pipelines.calls import Call
from calibri.sampling.branches import BranchResolver
from calibri.sampling.scales.ensemble import Passes, can_repeat, repeated_rows
from calibri.sampling.scales.scaler import Scaler
from tests.tiny import flux_inputs, flux_pipeline, forward, sd3_inputs, tiny_flux, tiny_sd3

MODELS = {"sd3": (tiny_sd3, sd3_inputs), "flux": (tiny_flux, flux_inputs)}
ROWS = 2
# fp32 rounding of a random model whose outputs are of size one, in batches of other sizes.
CLOSE = {"rtol": 1e-4, "atol": 2e-5}


@pytest.fixture(params=MODELS)
def case(request):
    make, inputs = MODELS[request.param]
    model = make()
    scaler = Scaler(model)
    yield model, inputs(ROWS), scaler
    scaler.remove()


def random_scales(scaler, members, images=ROWS, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (images, members, len(scaler.sites) + 1)
    return 1 + 0.5 * torch.randn(shape, generator=generator)


def row_of(inputs, row):
    shared = ("img_ids", "txt_ids")
    return {n: v if n in shared else v[row : row + 1] for n, v in inputs.items()}


def one_at_a_time(model, inputs, scales):
    """The oracle: every member on every row alone, added in double precision."""
    total = []
    for row in range(ROWS):
        parts = []
        for member in range(scales.shape[1]):
            alone = Scaler(model)
            own = scales[min(row, len(scales) - 1), member].clone()
            weight, own[-1] = float(own[-1]), 1.0
            alone.set(own[None, None])
            parts.append(forward(model, row_of(inputs, row)).double() * weight)
            alone.remove()
        total.append(sum(parts))
    return torch.cat(total).float()


def take_memory(model):
    """Make a model run out of memory above the rows of the plain call; list when it did."""
    refused = []

    def refuse(module, args, kwargs):
        if len(kwargs["hidden_states"]) > ROWS:
            refused.append(len(kwargs["hidden_states"]))
            raise torch.OutOfMemoryError("too many rows")

    model.transformer_blocks[1].register_forward_pre_hook(refuse, with_kwargs=True)
    return refused


@pytest.mark.parametrize("images", [1, ROWS])
@pytest.mark.parametrize("members", [2, 3])
def test_an_ensemble_is_the_weighted_sum_of_its_members(case, members, images):
    model, inputs, scaler = case
    scales = random_scales(scaler, members, images)
    scaler.set(scales, (0,) * members)
    ours = forward(model, inputs)
    scaler.remove()
    expected = one_at_a_time(model, inputs, scales)
    torch.testing.assert_close(ours, expected, **CLOSE)
    assert not torch.allclose(ours, forward(model, inputs), atol=1e-2)


def test_one_batch_and_one_after_the_other_give_the_same(case):
    model, inputs, scaler = case
    calls = []
    model.proj_out.register_forward_hook(lambda m, a, out: calls.append(len(out)))
    scaler.set(random_scales(scaler, 3), (0, 0, 0))
    batched = forward(model, inputs)
    assert calls == [3 * ROWS]
    refused = take_memory(model)
    del calls[:]
    sequential = forward(model, inputs)
    assert calls == [ROWS] * 3
    torch.testing.assert_close(sequential, batched, **CLOSE)
    forward(model, inputs)  # what did not fit is not tried again
    assert calls == [ROWS] * 6
    assert refused == [3 * ROWS]


def test_an_argument_that_is_not_known_is_not_repeated(case):
    model, inputs, scaler = case
    calls = []
    model.proj_out.register_forward_hook(lambda m, a, out: calls.append(len(out)))
    scaler.set(random_scales(scaler, 2), (0, 0))
    with torch.no_grad():
        named = {name: value for name, value in inputs.items() if name != "hidden_states"}
        first = model(inputs["hidden_states"], **named, return_dict=False)[0]
    assert calls == [ROWS, ROWS]
    torch.testing.assert_close(first, forward(model, inputs), **CLOSE)


def test_at_the_start_nothing_changes_and_silent_members_are_not_run(case):
    model, inputs, scaler = case
    calls = []
    model.proj_out.register_forward_hook(lambda m, a, out: calls.append(len(out)))
    scales = random_scales(scaler, 3, 1)
    scales[:, 0] = 1.0
    scales[:, 1:, -1] = 0.0
    scaler.set(scales, (0, 0, 0))
    ours = forward(model, inputs)
    scaler.remove()
    assert torch.equal(ours, forward(model, inputs))
    assert calls == [ROWS, ROWS]


def test_members_that_are_the_model_add_up_to_it(case):
    model, inputs, scaler = case
    scales = torch.ones(1, 3, len(scaler.sites) + 1)
    scales[0, :, -1] = torch.tensor([0.25, 1.5, -0.75])
    scaler.set(scales, (0, 0, 0))
    ours = forward(model, inputs)
    scaler.remove()
    torch.testing.assert_close(ours, forward(model, inputs), **CLOSE)


def test_the_same_scaler_goes_from_an_ensemble_to_one_member_and_back(case):
    model, inputs, scaler = case
    ensemble = random_scales(scaler, 2)
    scaler.set(ensemble, (0, 0))
    first = forward(model, inputs)
    single = random_scales(scaler, 1, seed=5)
    scaler.set(single)
    alone = forward(model, inputs)
    torch.testing.assert_close(alone, one_at_a_time_of(model, inputs, single))
    scaler.set(ensemble, (0, 0))
    assert torch.equal(forward(model, inputs), first)


def one_at_a_time_of(model, inputs, scales):
    other = type(model).from_config(model.config)
    other.load_state_dict(model.state_dict())
    scaler = Scaler(other.eval())
    scaler.set(scales)
    return forward(other, inputs)


def test_removing_gives_the_transformer_its_own_forward_back(case):
    model, inputs, scaler = case
    scaler.set(random_scales(scaler, 2), (0, 0))
    assert "forward" in vars(model)
    scaler.remove()
    assert "forward" not in vars(model)


def test_a_forward_that_another_library_set_is_kept():
    model, inputs = tiny_sd3(), sd3_inputs(ROWS)
    plain = forward(model, inputs)
    original, seen = model.forward, []

    def theirs(*args, **kwargs):
        seen.append(1)
        return original(*args, **kwargs)

    model.forward = theirs
    scaler = Scaler(model)
    scaler.set(random_scales(scaler, 2), (0, 0))
    forward(model, inputs)
    ours = model.forward
    model.forward = lambda *args, **kwargs: ours(*args, **kwargs)  # and one around ours
    scaler.remove()
    assert torch.equal(forward(model, inputs), plain)
    assert len(seen) == 2


def test_rows_that_do_not_fit_the_images_are_refused(case):
    model, inputs, scaler = case
    scaler.set(random_scales(scaler, 2, images=3), (0, 0))
    with pytest.raises(GuidanceError, match="2 rows for 3 images"):
        forward(model, inputs)


def test_branches_need_the_pipeline(case):
    model, inputs, scaler = case
    scaler.set(random_scales(scaler, 3), (0, 1, 0))
    with pytest.raises(GuidanceError, match="which rows"):
        forward(model, inputs)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_passes_give_every_row_every_member_of_its_branch(data):
    branches = data.draw(
        st.lists(st.integers(0, 1), min_size=2, max_size=5).filter(lambda b: {0, 1} <= {*b})
    )
    layout = data.draw(st.sampled_from([(0,), (1,), (0, 1), (1, 0), (1, 0, 0)]))
    images = data.draw(st.integers(1, 3))
    shared = data.draw(st.booleans())
    numbers = st.integers(-2, 2).map(float)
    weights = data.draw(st.lists(numbers, min_size=len(branches), max_size=len(branches)))
    scales = torch.zeros(1 if shared else images, len(branches), 2)
    scales[:, :, 0] = torch.arange(len(branches)) + 1.0
    scales[:, :, 1] = torch.tensor(weights)
    passes = Passes.plan(scales, branches, layout, images)
    assert (passes.scales[:, :, -1] == 1).all()  # the weight is that of what is returned
    for row in range(images * len(layout)):
        branch = layout[row // images]
        given_to = {
            float(s): float(w)
            for s, w in zip(passes.scales[:, row, 0], passes.weights[:, row], strict=True)
            if w
        }
        wanted = {m + 1.0: weights[m] for m, b in enumerate(branches) if b == branch and weights[m]}
        assert given_to == wanted


def test_rows_are_repeated_where_every_argument_is_known():
    inputs = {"hidden_states": torch.randn(2, 3), "timestep": torch.tensor(5.0)}
    inputs |= {"img_shapes": [[(1, 2, 2)], [(1, 3, 3)]], "img_ids": torch.zeros(2, 3), "x": None}
    assert can_repeat(Call((), inputs))
    assert not can_repeat(Call((torch.ones(1),), {}))
    assert not can_repeat(Call((), {"joint_attention_kwargs": {"a": [torch.ones(1)]}}))
    twice = repeated_rows(inputs, 2, 2)
    assert twice["hidden_states"].shape == (4, 3)
    assert twice["timestep"] is inputs["timestep"]
    assert twice["img_shapes"] == inputs["img_shapes"] * 2
    assert twice["img_ids"] is inputs["img_ids"]


def flux_images(pipe):
    generator = torch.Generator().manual_seed(0)
    return pipe(
        prompt_embeds=torch.randn(2, 5, 16, generator=generator),
        pooled_prompt_embeds=torch.randn(2, 12, generator=generator),
        height=64,
        width=64,
        num_inference_steps=2,
        guidance_scale=3.5,
        generator=generator,
        output_type="latent",
    ).images


def sd3_images(pipe, guidance_scale=1.0):
    return pipe(
        ["a red circle", "a blue square"],
        num_inference_steps=3,
        guidance_scale=guidance_scale,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
    ).images


@pytest.mark.parametrize("kind", ["flux", "sd3"])
def test_images_of_real_pipelines_with_members_that_are_the_model(kind, pipe):
    pipe = flux_pipeline() if kind == "flux" else pipe
    images = flux_images if kind == "flux" else sd3_images
    before = images(pipe)
    scaler = Scaler(pipe.transformer)
    scales = torch.ones(1, 2, len(scaler.sites) + 1)
    scales[0, :, -1] = torch.tensor([1.0, 0.0])
    scaler.set(scales, (0, 0))
    assert torch.equal(images(pipe), before)
    scales[0, :, -1] = torch.tensor([0.25, 0.75])
    scaler.set(scales, (0, 0))
    torch.testing.assert_close(images(pipe), before, rtol=1e-4, atol=1e-4)
    scales[0, 1, 0] = 0.0
    scaler.set(scales, (0, 0))
    assert not torch.allclose(images(pipe), before, atol=1e-3)


def test_under_guidance_members_join_their_branch(pipe):
    wanted = sd3_images(pipe, 5.0)
    resolver = BranchResolver(pipe)
    scaler = Scaler(pipe.transformer, resolver)
    # (w, 1 - w) = (5, -4) as members (2, -4, 3) in a pipeline that multiplies by 3 and -2.
    scales = torch.ones(1, 3, len(scaler.sites) + 1)
    scales[0, :, -1] = torch.tensor([2 / 3, 2.0, 3 / 3])
    scaler.set(scales, (0, 1, 0))
    torch.testing.assert_close(sd3_images(pipe, 3.0), wanted, rtol=1e-3, atol=1e-4)
