"""Wan 2.2 and Ideogram 4: both transformers are found, scaled, folded and restored."""

import pytest
import torch

import calibri
from calibri.coefficients.coefficients import Coefficients
from calibri.coefficients.space import SearchSpace
from calibri.config import validate_config
from calibri.errors import CalibrationError, ConfigError, FuseError
from calibri.pipelines.networks import networks_of, sites_of
from calibri.prompts.files import make_prompts
from calibri.runs.session import Session
from calibri.sampling.branches import BranchResolver
from calibri.sampling.sampler import Noise, Sampler
from calibri.sampling.scales.scaler import Scaler
from tests.sampling.two_transformers import ideogram_4, sample_ideogram, sample_wan, wan_2_2
from tests.tiny import calibration_of, has_hooks

PIPELINES = {
    "transformer_2": (wan_2_2, sample_wan),
    "unconditional_transformer": (ideogram_4, sample_ideogram),
}
both = pytest.mark.parametrize("second", PIPELINES)
SCALE = 3.0  # of guidance, in every stock call


def coefficients(pipe, values=None, outputs=(SCALE, 1 - SCALE)):
    """Give every block a value of its own, or those of ``values`` theirs and 1 to the others."""
    space = SearchSpace.build(sites_of(networks_of(pipe)), "layer", guidance_scale=SCALE)
    generator = torch.Generator().manual_seed(0)
    drawn = 0.7 + 0.6 * torch.rand(len(space.names), generator=generator)
    own = dict(zip(space.names, drawn.tolist(), strict=True))
    if values is not None:
        own = dict.fromkeys(space.names, 1.0) | values
    return Coefficients(
        granularity="layer",
        scales=(own,),
        output_weights=outputs,
        start_weights=(SCALE, 1 - SCALE),
    )


def calibration(pipe, *args, **kwargs):
    made = coefficients(pipe, *args, **kwargs)
    return calibration_of(pipe.transformer, made, num_inference_steps=2, guidance_scale=SCALE)


@both
def test_sites_of_both_are_found_and_say_whose_they_are(second):
    pipe = PIPELINES[second][0]()
    found = calibri.inspect(pipe)
    own = [site.name for site in found.sites if not site.name.startswith(f"{second}.")]
    others = [site.name for site in found.sites if site.name.startswith(f"{second}.")]
    assert own == [site.name for site in calibri.inspect(pipe.transformer).sites]
    assert others == [f"{second}.{name}" for name in own]
    assert found.counts["gate"] == 2 * calibri.inspect(pipe.transformer).counts["gate"]


def test_a_second_transformer_that_the_pipeline_never_runs_has_no_sites():
    pipe = wan_2_2(boundary_ratio=None)
    assert len(networks_of(pipe)) == 1
    assert calibri.inspect(pipe).counts == calibri.inspect(pipe.transformer).counts


@both
def test_ones_are_the_identity_and_unloading_leaves_nothing(second):
    build, sample = PIPELINES[second]
    pipe = build()
    before = sample(pipe)
    applied = calibri.load(pipe, calibration(pipe, values={}))
    assert torch.equal(sample(pipe), before)
    applied.unload()
    applied = calibri.load(pipe, calibration(pipe))
    assert not torch.allclose(sample(pipe), before, atol=1e-3)
    applied.set_strength(0.0)
    assert torch.equal(sample(pipe), before)
    applied.unload()
    assert torch.equal(sample(pipe), before)
    for model in (pipe.transformer, getattr(pipe, second)):
        assert not has_hooks(model)
        assert "_calibri_applied" not in vars(model)


@both
def test_fused_weights_of_both_give_the_images_of_the_hooks(second, tmp_path):
    build, sample = PIPELINES[second]
    pipe = build()
    before = sample(pipe)
    weights = {n: v.clone() for n, v in getattr(pipe, second).state_dict().items()}
    applied = calibri.load(pipe, calibration(pipe).save_pretrained(tmp_path / "made"))
    hooked = sample(pipe)
    applied.fuse()
    torch.testing.assert_close(sample(pipe), hooked, rtol=1e-3, atol=1e-4)
    state = getattr(pipe, second).state_dict()
    assert any(not torch.equal(state[name], value) for name, value in weights.items())
    applied.unfuse()
    assert torch.equal(sample(pipe), hooked)
    applied.fuse()
    applied.unload()
    assert torch.equal(sample(pipe), before)


@both
def test_a_failed_fuse_changes_neither(second):
    pipe = PIPELINES[second][0]()
    networks = [pipe.transformer, getattr(pipe, second)]
    applied = calibri.load(pipe, calibration(pipe))
    networks[1].to(torch.float8_e4m3fn)
    before = {n: v.clone() for n, v in networks[0].state_dict().items()}
    with pytest.raises(FuseError, match="float8"):
        applied.fuse()
    assert all(torch.equal(v, before[n]) for n, v in networks[0].state_dict().items())


def test_scales_of_transformer_2_change_only_what_it_samples():
    pipe = wan_2_2()
    latents = []
    pipe.scheduler.step = keeping(pipe.scheduler.step, latents)
    sample_wan(pipe)
    names = coefficients(pipe).scales[0]
    applied = calibri.load(
        pipe, calibration(pipe, {name: 0.5 for name in names if name.startswith("transformer_2.")})
    )
    sample_wan(pipe)
    # The first of three steps is the high-noise transformer's, the others are the other's.
    assert torch.equal(latents[0], latents[3])
    assert not torch.allclose(latents[1], latents[4], atol=1e-3)
    applied.unload()
    pipe.register_to_config(boundary_ratio=0.0)  # a trajectory that never reaches it
    plain = sample_wan(pipe)
    calibri.load(
        pipe, calibration(pipe, {name: 0.5 for name in names if name.startswith("transformer_2.")})
    )
    assert torch.equal(sample_wan(pipe), plain)


def keeping(step, kept):
    def stepped(*args, **kwargs):
        result = step(*args, **kwargs)
        kept.append(result[0].clone())
        return result

    return stepped


@both
@pytest.mark.parametrize("wanted", [4.5, 1.5])
def test_output_weights_are_guidance(second, wanted):
    build, sample = PIPELINES[second]
    pipe = build()
    expected, plain = sample(pipe, wanted), sample(pipe)
    calibri.load(pipe, calibration(pipe, {}, outputs=(wanted, 1 - wanted)))
    effect = (plain - expected).abs().max()
    assert effect > 1e-3
    assert (sample(pipe) - expected).abs().max() < 0.01 * effect


def test_output_weights_of_two_branches_fold_into_a_network_for_each():
    pipe = ideogram_4()
    applied = calibri.load(pipe, calibration(pipe, outputs=(4.5, -2.0)))
    hooked = sample_ideogram(pipe)
    applied.fuse()
    torch.testing.assert_close(sample_ideogram(pipe), hooked, rtol=1e-3, atol=1e-4)
    pipe = wan_2_2()
    with pytest.raises(FuseError, match="differently"):
        calibri.load(pipe, calibration(pipe, outputs=(4.5, -2.0))).fuse()


def test_each_branch_of_ideogram_gets_its_members_scales():
    pipe = ideogram_4()
    scaler = Scaler(networks_of(pipe), BranchResolver(pipe))
    count = len(scaler.sites) // 2
    scales = torch.ones(1, 2, len(scaler.sites) + 1)
    plain = sample_ideogram(pipe)
    scales[:, 0, count:-1] = 0.2  # the prompt's scales in the network of the other branch
    scales[:, 1, :count] = 0.2
    scaler.set(scales)
    assert torch.equal(sample_ideogram(pipe), plain)
    scales[:, 1, count] = 0.2
    scaler.set(scales)
    assert not torch.allclose(sample_ideogram(pipe), plain, atol=1e-3)


def test_scales_of_each_image_reach_its_rows_in_both_transformers():
    pipe = wan_2_2()
    scaler = Scaler(networks_of(pipe), BranchResolver(pipe))
    scales = torch.ones(2, 2, len(scaler.sites) + 1)
    plain = of_two_images(pipe)
    scales[1, :, -2] = 0.3  # of the low-noise transformer, the second image
    scaler.set(scales)
    changed = of_two_images(pipe)
    torch.testing.assert_close(changed[0], plain[0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(changed[1], plain[1], atol=1e-3)


def of_two_images(pipe):
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    return pipe(
        prompt=["a red circle", "two blue squares"],
        negative_prompt=["ugly", "ugly"],
        generator=generators,
        num_inference_steps=3,
        guidance_scale=SCALE,
        output_type="latent",
        return_dict=False,
        height=16,
        width=16,
        num_frames=5,
        max_sequence_length=8,
    )[0]


def test_a_calibration_of_both_does_not_fit_one_and_none_is_loaded_twice():
    pipe = wan_2_2()
    made = calibration(pipe)
    with pytest.raises(CalibrationError, match="does not fit"):
        calibri.load(pipe.transformer, made)
    calibri.load(pipe, made)
    with pytest.raises(CalibrationError, match="already loaded"):
        calibri.load(pipe, made)


def session(pipe, **space):
    size = dict(height=64, width=64, num_inference_steps=2)
    return Session(
        validate_config(
            {
                "device": "cpu",
                "sampling": size | {"guidance_scale": SCALE},
                "space": {"granularity": "gate"} | space,
            }
        ),
        pipe=pipe,
    )


def test_a_search_on_ideogram_has_scales_for_both_and_starts_at_the_stock_images():
    pipe = ideogram_4()
    made = session(pipe)
    assert made.space.start_weights == (SCALE, 1 - SCALE)
    assert made.space.factors == ("shift",)
    assert made.space.size == 2 * calibri.inspect(pipe.transformer).counts["gate"] + 2 * 2 + 1
    noises = [Noise(prompt, 5) for prompt in make_prompts(["a red circle", "a blue square"])]
    plain = Sampler(pipe, made.config.sampling).sample(noises)
    assert torch.equal(made.sample(made.space.coefficients(made.space.start), noises), plain)
    moved = made.space.start.copy()
    moved[made.space.labels.index("unconditional_transformer.layers.0.ffn_norm2")] = 0.0
    assert not torch.equal(made.sample(made.space.coefficients(moved), noises), plain)


def test_separate_scales_are_refused_where_each_branch_has_its_own_transformer():
    with pytest.raises(ConfigError, match="'shared'"):
        session(ideogram_4(), branches="separate")
    assert session(ideogram_4(), branches="separate", members=2).space.members == 3
