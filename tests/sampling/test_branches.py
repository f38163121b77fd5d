import pytest
import torch

from calibri.errors import GuidanceError, UnsupportedModelError
from calibri.sampling.branches import BranchResolver
from calibri.sampling.scales.scaler import Scaler

PROMPTS = ["a red circle", "a blue square above a green cross"]


def sample(pipe, guidance_scale, prompts=PROMPTS, steps=3, **kwargs):
    generators = [torch.Generator().manual_seed(i) for i in range(len(prompts))]
    return pipe(
        prompts,
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        generator=generators,
        output_type="latent",
        **kwargs,
    ).images


def branch_scales(count, images, conditional=1.0, unconditional=1.0):
    scales = torch.ones(images, 2, count)
    scales[:, 0, -1], scales[:, 1, -1] = conditional, unconditional
    return scales


@pytest.mark.parametrize(("stock", "wanted"), [(3.0, 5.0), (3.0, 1.5), (7.0, 2.0)])
def test_output_weights_reproduce_the_stock_pipeline_at_another_guidance(pipe, stock, wanted):
    expected = sample(pipe, wanted)
    scaler = Scaler(pipe.transformer, BranchResolver(pipe))
    # omega = (w', 1 - w') through a pipeline that combines with (w, 1 - w).
    scales = branch_scales(len(scaler.sites) + 1, 2, wanted / stock, (1 - wanted) / (1 - stock))
    scaler.set(scales)
    torch.testing.assert_close(sample(pipe, stock), expected, rtol=1e-3, atol=1e-5)
    assert not torch.allclose(sample(pipe, wanted), expected, atol=1e-3)


def test_ones_equal_the_stock_pipeline_with_two_sets(pipe):
    expected = sample(pipe, 3.0)
    scaler = Scaler(pipe.transformer, BranchResolver(pipe))
    scaler.set(torch.ones(2, 2, len(scaler.sites) + 1))
    assert torch.equal(sample(pipe, 3.0), expected)


def test_the_conditional_set_reaches_conditional_rows_only(pipe):
    resolver = BranchResolver(pipe)
    scaler = Scaler(pipe.transformer, resolver)
    outputs = []
    pipe.transformer.register_forward_hook(lambda m, a, out: outputs.append(out[0]))
    scaler.set(torch.ones(2, 2, len(scaler.sites) + 1))
    sample(pipe, 3.0, steps=1)
    scales = torch.ones(2, 2, len(scaler.sites) + 1)
    scales[:, 0, 0] = 0.0
    scaler.set(scales)
    sample(pipe, 3.0, steps=1)
    before, after = (out.chunk(2) for out in outputs)
    # Stable Diffusion 3 puts the unconditional rows first.
    assert torch.equal(before[0], after[0])
    assert not torch.allclose(before[1], after[1], atol=1e-5)


def test_unguided_calls_are_conditional(pipe):
    resolver = BranchResolver(pipe)
    seen = []
    pipe.transformer.register_forward_pre_hook(
        lambda m, a, kwargs: seen.append(resolver(kwargs)), with_kwargs=True
    )
    sample(pipe, 1.0, steps=1)
    sample(pipe, 3.0, steps=1)
    assert seen == [(0,), (1, 0)]


def test_embeddings_given_by_the_caller_are_recognised_too(pipe):
    embeds, negative, pooled, negative_pooled = pipe.encode_prompt(PROMPTS, None, None)
    resolver = BranchResolver(pipe)
    seen = []
    pipe.transformer.register_forward_pre_hook(
        lambda m, a, kwargs: seen.append(resolver(kwargs)), with_kwargs=True
    )
    pipe(
        prompt_embeds=embeds,
        negative_prompt_embeds=negative,
        pooled_prompt_embeds=pooled,
        negative_pooled_prompt_embeds=negative_pooled,
        num_inference_steps=1,
        guidance_scale=3.0,
        output_type="latent",
    )
    assert seen == [(1, 0)]


def test_the_same_prompt_and_negative_prompt_are_refused_not_guessed(pipe):
    scaler = Scaler(pipe.transformer, BranchResolver(pipe))
    scaler.set(branch_scales(len(scaler.sites) + 1, 1))
    with pytest.raises(GuidanceError, match="the same for the prompt and the negative prompt"):
        sample(pipe, 3.0, prompts=["a red circle"], negative_prompt=["a red circle"])


def test_foreign_embeddings_are_refused_not_guessed(pipe):
    resolver = BranchResolver(pipe)
    sample(pipe, 3.0, steps=1)
    with pytest.raises(GuidanceError, match="match neither"):
        resolver({"encoder_hidden_states": torch.zeros(2, 14, 96)})


def test_removing_gives_the_pipeline_its_own_method_back(pipe):
    original = pipe.encode_prompt
    BranchResolver(pipe).remove()
    assert pipe.encode_prompt == original


def test_other_pipelines_are_refused():
    with pytest.raises(UnsupportedModelError, match="object"):
        BranchResolver(object())


@pytest.mark.parametrize(("name", "layout"), [("conditional", (0,)), ("unconditional", (1,))])
def test_the_caller_can_say_the_branch_of_a_forward(pipe, name, layout):
    resolver = BranchResolver(pipe)
    foreign = {"encoder_hidden_states": torch.zeros(2, 14, 96)}
    with resolver.branch(name):
        assert resolver(foreign) == layout
    with pytest.raises(GuidanceError, match="match neither"):
        resolver(foreign)
