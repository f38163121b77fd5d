"""Every layout of classifier-free guidance, in real pipelines around tiny random transformers."""

import pytest
import torch

from calibri.errors import GuidanceError
from calibri.pipelines.families.lookup import family_of
from calibri.sampling.branches import BranchResolver
from calibri.sampling.scales.scaler import Scaler
from tests.sampling.pipelines import RIGS

PROMPTS = ["a red circle", "two blue squares here"]
NEGATIVE = ["ugly", "ugly"]

pytestmark = [
    # Chroma's own file imports the name that diffusers moved.
    pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning"),
    # Mochi asks for float32 inside autocast, which a CPU does without.
    pytest.mark.filterwarnings("ignore:In CPU autocast:UserWarning"),
    # Cosmos 2 gives its scheduler a tensor where numpy 2 wants an array.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
every_rig = pytest.mark.parametrize("rig", RIGS, ids=lambda rig: rig.id)


def sample(rig, pipe, scale, steps=2, prompts=PROMPTS, negative=NEGATIVE):
    generators = [torch.Generator().manual_seed(i) for i in range(len(prompts))]
    images = pipe(
        prompt=list(prompts),
        negative_prompt=list(negative),
        num_inference_steps=steps,
        generator=generators,
        output_type="latent",
        return_dict=False,
        **{rig.guidance: scale},
        **rig.call,
    )[0]
    assert images.isfinite().all()
    return images


def ones(scaler, images=2):
    return torch.ones(images, 2, len(scaler.sites) + 1)


def difference(one, other):
    return ((one - other).abs().max() / other.std()).item()


@every_rig
@pytest.mark.parametrize(("stock", "wanted"), [(3.0, 4.5), (4.0, 1.5)])
def test_output_weights_reproduce_the_stock_pipeline_at_another_guidance(rig, stock, wanted):
    pipe = rig.build()
    expected, plain = sample(rig, pipe, wanted), sample(rig, pipe, stock)
    scaler = Scaler(pipe.transformer, BranchResolver(pipe))
    scales = ones(scaler)
    # omega = (w', 1 - w') through a pipeline that combines with (w, 1 - w).
    scales[:, 0, -1] = (wanted + rig.offset) / (stock + rig.offset)
    scales[:, 1, -1] = (1 - wanted - rig.offset) / (1 - stock - rig.offset)
    if rig.normalised:
        # The conditional prediction alone sets the norm: only the ratio of the weights counts.
        scales[:, :, -1] /= scales[:, :1, -1].clone()
    scaler.set(scales)
    effect = difference(plain, expected)
    assert effect > 1e-4
    assert difference(sample(rig, pipe, stock), expected) < 0.02 * effect


LAYOUTS = {
    "one call for each branch, conditional first": ((0,), (1,)),
    "embedded, or one call for each branch": ((0,), (1,)),
    "one batch, unconditional first": ((1, 0),),
    "one batch, conditional first": ((0, 1),),
}


@every_rig
def test_the_family_knows_how_the_pipeline_counts_and_runs_guidance(rig):
    guidance = family_of(rig.transformer).guidance
    # The offset is that of the test above.
    assert guidance.scale(3.0) == 3.0 + rig.offset
    assert LAYOUTS[guidance.layout] == rig.rows
    pipe = rig.build()
    least = 1.0 if guidance.excess_above is None else guidance.excess_above
    for scale, branches in ((least, 1), (least + 0.1, len(rig.rows[0]) * len(rig.rows))):
        seen = watch(pipe, BranchResolver(pipe))
        sample(rig, pipe, scale, steps=rig.steps)
        assert sum(map(len, seen)) == branches * rig.steps
        assert (guidance.scale(scale) > 1.0) == (branches > 1)


@every_rig
def test_ones_in_both_branches_are_the_stock_pipeline(rig):
    pipe = rig.build()
    expected = sample(rig, pipe, 3.0)
    scaler = Scaler(pipe.transformer, BranchResolver(pipe))
    scaler.set(ones(scaler))
    assert torch.equal(sample(rig, pipe, 3.0), expected)


@every_rig
@pytest.mark.parametrize("branch", [0, 1])
def test_a_scale_of_one_branch_reaches_its_rows_only(rig, branch):
    pipe = rig.build()
    scaler = Scaler(pipe.transformer, BranchResolver(pipe))
    before = outputs_of_one_step(rig, pipe, scaler, ones(scaler))
    scales = ones(scaler)
    scales[:, branch, -1] = 0.5
    after = outputs_of_one_step(rig, pipe, scaler, scales)
    assert len(before) == len(after) == len(rig.rows)
    for groups, one, other in zip(rig.rows, before, after, strict=True):
        for group, a, b in zip(groups, one, other, strict=True):
            assert torch.allclose(a, b, atol=1e-5) != (group == branch)


def outputs_of_one_step(rig, pipe, scaler, scales):
    """What the transformer returned in each call, split into the groups of rows of the call."""
    outputs = []
    keep = pipe.transformer.register_forward_hook(lambda m, a, out: outputs.append(out[0]))
    scaler.set(scales)
    sample(rig, pipe, 3.0, steps=rig.steps)
    keep.remove()
    stacked = [torch.stack(list(output)) for output in outputs[: len(rig.rows)]]
    return [out.chunk(len(groups)) for out, groups in zip(stacked, rig.rows, strict=True)]


@every_rig
def test_the_same_prompt_and_negative_prompt_are_told_apart_by_name_or_refused(rig):
    pipe = rig.build()
    negative = [rig.prefix + prompt for prompt in PROMPTS]
    expected = sample(rig, pipe, 3.0, negative=negative)
    scaler = Scaler(pipe.transformer, BranchResolver(pipe))
    scaler.set(ones(scaler))
    if rig.context:
        assert torch.equal(sample(rig, pipe, 3.0, negative=negative), expected)
        return
    with pytest.raises(GuidanceError, match="the same for the prompt and the negative prompt"):
        sample(rig, pipe, 3.0, negative=negative)


@every_rig
def test_a_call_without_guidance_is_conditional(rig):
    pipe = rig.build()
    resolver = BranchResolver(pipe)
    seen = watch(pipe, resolver)
    sample(rig, pipe, 0.0 if rig.offset else 1.0, steps=rig.steps)
    assert seen == [(0,)] * rig.steps


def watch(pipe, resolver):
    """Collect the layout of every forward."""
    seen = []

    def before(module, args, kwargs):
        seen.append(resolver({str(i): arg for i, arg in enumerate(args)} | kwargs))

    pipe.transformer.register_forward_pre_hook(before, with_kwargs=True)
    return seen


@every_rig
def test_removing_leaves_no_trace(rig):
    pipe = rig.build()
    before = set(vars(pipe)), set(vars(pipe.transformer))
    BranchResolver(pipe).remove()
    assert (set(vars(pipe)), set(vars(pipe.transformer))) == before
