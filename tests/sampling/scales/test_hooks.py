import pytest
import torch

from calibri.errors import GuidanceError
from calibri.sampling.scales.scaler import Scaler
from tests.sampling.scales.models import MODELS, random_scales
from tests.tiny import forward, has_hooks, sd3_inputs, tiny_sd3


@MODELS
def test_ones_are_the_identity_and_leave_nothing_behind(make, inputs):
    model = make()
    before, state = forward(model, inputs()), list(model.state_dict())
    scaler = Scaler(model)
    assert torch.equal(forward(model, inputs()), before)
    assert list(model.state_dict()) == state
    scaler.set(random_scales(len(scaler.sites) + 1))
    assert not torch.allclose(forward(model, inputs()), before)
    scaler.remove()
    assert torch.equal(forward(model, inputs()), before)
    assert not has_hooks(model)


@MODELS
def test_zero_makes_every_block_the_identity_on_its_streams(make, inputs):
    model = make()
    seen: list[bool] = []
    scaler = Scaler(model)

    def check(block, args, kwargs, output):
        given = [kwargs["hidden_states"], kwargs["encoder_hidden_states"]]
        for stream in output if isinstance(output, tuple) else (output,):
            if stream is not None:
                seen.append(any(stream.shape == g.shape and torch.equal(stream, g) for g in given))

    for path in {site.block for site in scaler.sites}:
        model.get_submodule(path).register_forward_hook(check, with_kwargs=True)
    scales = torch.ones(1, 1, len(scaler.sites) + 1)
    scales[..., :-1] = 0
    scaler.set(scales)
    forward(model, inputs())
    assert len(seen) >= 4
    assert all(seen)


@MODELS
def test_every_site_has_an_influence(make, inputs):
    model = make()
    scaler = Scaler(model)
    before = forward(model, inputs())
    for site in range(len(scaler.sites) + 1):
        scales = torch.ones(1, 1, len(scaler.sites) + 1)
        scales[..., site] = 0.3
        scaler.set(scales)
        assert not torch.allclose(forward(model, inputs()), before, atol=1e-6), site


@MODELS
def test_the_output_site_scales_the_models_output(make, inputs):
    model = make()
    before = forward(model, inputs())
    scaler = Scaler(model)
    scales = torch.ones(1, 1, len(scaler.sites) + 1)
    scales[..., -1] = 1.7
    scaler.set(scales)
    torch.testing.assert_close(forward(model, inputs()), 1.7 * before, rtol=1e-5, atol=1e-6)


@MODELS
def test_scales_per_row_equal_one_row_at_a_time(make, inputs):
    model = make()
    scaler = Scaler(model)
    given = inputs(rows=3)
    scales = random_scales(len(scaler.sites) + 1, rows=3)
    scaler.set(scales)
    together = forward(model, given)
    for row in range(3):
        scaler.set(scales[row : row + 1])
        alone = {
            name: value if name.endswith("ids") else value[row : row + 1]
            for name, value in given.items()
        }
        torch.testing.assert_close(forward(model, alone)[0], together[row], rtol=1e-5, atol=1e-5)


def test_rows_that_do_not_fit_the_batch_are_refused():
    model = tiny_sd3()
    scaler = Scaler(model)
    scaler.set(random_scales(len(scaler.sites) + 1, rows=3))
    with pytest.raises(GuidanceError, match="2 rows for 3 images"):
        forward(model, sd3_inputs(rows=2))


def test_branches_without_a_resolver_are_refused():
    model = tiny_sd3()
    scaler = Scaler(model)
    scaler.set(torch.ones(1, 2, len(scaler.sites) + 1))
    with pytest.raises(GuidanceError, match="which rows"):
        forward(model, sd3_inputs())


def test_branches_follow_the_layout_of_the_forward():
    model = tiny_sd3()
    scaler = Scaler(model, resolver=lambda kwargs: (1, 0))
    given = sd3_inputs(rows=4)
    scales = random_scales(len(scaler.sites) + 1, rows=4).reshape(2, 2, -1)  # images, branches
    scaler.set(scales)
    together = forward(model, given)
    alone = Scaler(tiny_sd3())
    for row, (image, branch) in enumerate([(0, 1), (1, 1), (0, 0), (1, 0)]):
        alone.set(scales[image : image + 1, branch : branch + 1])
        one = forward(alone.transformer, {k: v[row : row + 1] for k, v in given.items()})
        torch.testing.assert_close(one[0], together[row], rtol=1e-5, atol=1e-5)
