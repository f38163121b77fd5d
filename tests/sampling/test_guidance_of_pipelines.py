"""Every layout of classifier-free guidance, in real pipelines around tiny random transformers."""

import pytest
import torch

from calibri.errors import GuidanceError
from calibri.pipelines.families.lookup import family_of
from calibri.sampling.branches import BranchResolver
from calibri.sampling.scales.scaler import Scaler
from tests.sampling.pipelines import CASES

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
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)


def sample(case, pipe, scale, steps=2, prompts=PROMPTS, negative=NEGATIVE):
    generators = [torch.Generator().manual_seed(i) for i in range(len(prompts))]
    images = pipe(
        prompt=list(prompts),
        negative_prompt=list(negative),
        num_inference_steps=steps,
        generator=generators,
        output_type="latent",
        return_dict=False,
        **{case.guidance: scale},
        **case.call,
    )[0]
    assert images.isfinite().all()
    return images


def ones(scaler, images=2):
    return torch.ones(images, 2, len(scaler.sites) + 1)


def difference(one, other):
    return ((one - other).abs().max() / other.std()).item()


@every_case
@pytest.mark.parametrize(("stock", "wanted"), [(3.0, 4.5), (4.0, 1.5)])
def test_output_weights_reproduce_the_stock_pipeline_at_another_guidance(case, stock, wanted):
    pipe = case.build()
    expected, plain = sample(case, pipe, wanted), sample(case, pipe, stock)
    scaler = Scaler(pipe.transformer, BranchResolver(pipe))
    scales = ones(scaler)
    # omega = (w', 1 - w') through a pipeline that combines with (w, 1 - w).
    scales[:, 0, -1] = (wanted + case.offset) / (stock + case.offset)
    scales[:, 1, -1] = (1 - wanted - case.offset) / (1 - stock - case.offset)
    if case.normalised:
        # The conditional prediction alone sets the norm: only the ratio of the weights counts.
        scales[:, :, -1] /= scales[:, :1, -1].clone()
    scaler.set(scales)
    effect = difference(plain, expected)
    assert effect > 1e-4
    assert difference(sample(case, pipe, stock), expected) < 0.02 * effect


LAYOUTS = {
    "one call for each branch, conditional first": ((0,), (1,)),
    "embedded, or one call for each branch": ((0,), (1,)),
    "one batch, unconditional first": ((1, 0),),
    "one batch, conditional first": ((0, 1),),
}


@every_case
def test_the_family_knows_how_the_pipeline_counts_and_runs_guidance(case):
    guidance = family_of(case.transformer).guidance
    # The offset is that of the test above.
    assert guidance.scale(3.0) == 3.0 + case.offset
    assert LAYOUTS[guidance.layout] == case.rows
    pipe = case.build()
    least = 1.0 if guidance.excess_above is None else guidance.excess_above
    for scale, branches in ((least, 1), (least + 0.1, len(case.rows[0]) * len(case.rows))):
        seen = watch(pipe, BranchResolver(pipe))
        sample(case, pipe, scale, steps=case.steps)
        assert sum(map(len, seen)) == branches * case.steps
        assert (guidance.scale(scale) > 1.0) == (branches > 1)


@every_case
def test_ones_in_both_branches_are_the_stock_pipeline(case):
    pipe = case.build()
    expected = sample(case, pipe, 3.0)
    scaler = Scaler(pipe.transformer, BranchResolver(pipe))
    scaler.set(ones(scaler))
    assert torch.equal(sample(case, pipe, 3.0), expected)


@every_case
@pytest.mark.parametrize("branch", [0, 1])
def test_a_scale_of_one_branch_reaches_its_rows_only(case, branch):
    pipe = case.build()
    scaler = Scaler(pipe.transformer, BranchResolver(pipe))
    before = outputs_of_one_step(case, pipe, scaler, ones(scaler))
    scales = ones(scaler)
    scales[:, branch, -1] = 0.5
    after = outputs_of_one_step(case, pipe, scaler, scales)
    assert len(before) == len(after) == len(case.rows)
    for groups, one, other in zip(case.rows, before, after, strict=True):
        for group, a, b in zip(groups, one, other, strict=True):
            assert torch.allclose(a, b, atol=1e-5) != (group == branch)


def outputs_of_one_step(case, pipe, scaler, scales):
    """What the transformer returned in each call, split into the groups of rows of the call."""
    outputs = []
    keep = pipe.transformer.register_forward_hook(lambda m, a, out: outputs.append(out[0]))
    scaler.set(scales)
    sample(case, pipe, 3.0, steps=case.steps)
    keep.remove()
    stacked = [torch.stack(list(output)) for output in outputs[: len(case.rows)]]
    return [out.chunk(len(groups)) for out, groups in zip(stacked, case.rows, strict=True)]


@every_case
def test_the_same_prompt_and_negative_prompt_are_told_apart_by_name_or_refused(case):
    pipe = case.build()
    negative = [case.prefix + prompt for prompt in PROMPTS]
    expected = sample(case, pipe, 3.0, negative=negative)
    scaler = Scaler(pipe.transformer, BranchResolver(pipe))
    scaler.set(ones(scaler))
    if case.context:
        assert torch.equal(sample(case, pipe, 3.0, negative=negative), expected)
        return
    with pytest.raises(GuidanceError, match="the same for the prompt and the negative prompt"):
        sample(case, pipe, 3.0, negative=negative)


@every_case
def test_a_call_without_guidance_is_conditional(case):
    pipe = case.build()
    resolver = BranchResolver(pipe)
    seen = watch(pipe, resolver)
    sample(case, pipe, 0.0 if case.offset else 1.0, steps=case.steps)
    assert seen == [(0,)] * case.steps


def watch(pipe, resolver):
    """Collect the layout of every forward."""
    seen = []

    def before(module, args, kwargs):
        seen.append(resolver({str(i): arg for i, arg in enumerate(args)} | kwargs))

    pipe.transformer.register_forward_pre_hook(before, with_kwargs=True)
    return seen


@every_case
def test_removing_leaves_no_trace(case):
    pipe = case.build()
    before = set(vars(pipe)), set(vars(pipe.transformer))
    BranchResolver(pipe).remove()
    assert (set(vars(pipe)), set(vars(pipe.transformer))) == before
