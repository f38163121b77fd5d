import pytest
import torch

from calibri.artifact.apply import load
from calibri.artifact.fuse import fuse
from calibri.artifact.generate import generate
from calibri.errors import CalibrationError, FuseError, GuidanceError
from calibri.pipelines.loading import load_pipeline
from calibri.runs.inspect import inspect
from tests.artifact.loaded import ensemble, sample
from tests.tiny import scaled_calibration


def test_load_changes_images_and_unload_restores_them(pipe):
    before = sample(pipe)
    applied = load(pipe, scaled_calibration(pipe))
    after = sample(pipe)
    assert not torch.allclose(after, before, atol=1e-4)
    applied.set_strength(0.0)
    assert torch.equal(sample(pipe), before)
    applied.set_strength(1.0)
    assert torch.equal(sample(pipe), after)
    applied.unload()
    assert torch.equal(sample(pipe), before)
    load(pipe, scaled_calibration(pipe)).unload()


def test_fused_equals_hooked_and_unfuse_is_exact(pipe):
    before = sample(pipe)
    applied = load(pipe, scaled_calibration(pipe))
    hooked = sample(pipe)
    applied.fuse()
    torch.testing.assert_close(sample(pipe), hooked, rtol=1e-4, atol=1e-5)
    applied.unfuse()
    assert torch.equal(sample(pipe), hooked)
    applied.fuse()
    applied.unload()
    assert torch.equal(sample(pipe), before)


def test_strength_of_a_fused_calibration_is_refused(pipe):
    applied = load(pipe, scaled_calibration(pipe))
    applied.fuse()
    with pytest.raises(FuseError, match="unfuse"):
        applied.set_strength(0.5)


def test_branch_sets_work_in_plain_guided_calls_with_any_number_of_images(pipe):
    before = sample(pipe, 3.0, count=2)
    applied = load(pipe, scaled_calibration(pipe, guidance_scale=3.0, branches="separate"))
    two = sample(pipe, 3.0, count=2)
    assert not torch.allclose(two, before, atol=1e-4)
    with pytest.raises(FuseError, match="differently"):
        applied.fuse()
    applied.unload()
    assert torch.equal(sample(pipe, 3.0, count=2), before)
    assert "encode_prompt" not in vars(pipe)


def test_a_shared_guided_calibration_without_output_change_can_be_fused(pipe):
    applied = load(pipe, scaled_calibration(pipe, guidance_scale=3.0))
    hooked = sample(pipe, 3.0)
    applied.fuse()
    torch.testing.assert_close(sample(pipe, 3.0), hooked, rtol=1e-4, atol=1e-5)


def test_output_weights_differing_by_branch_cannot_be_fused(pipe):
    applied = load(pipe, scaled_calibration(pipe, guidance_scale=3.0, outputs=[3.3, -2.0]))
    with pytest.raises(FuseError):
        applied.fuse()


def test_a_second_calibration_is_refused(pipe):
    load(pipe, scaled_calibration(pipe))
    with pytest.raises(CalibrationError, match="already loaded"):
        load(pipe, scaled_calibration(pipe))


def test_another_class_is_refused(pipe):
    changes = {"transformer_class": "FluxTransformer2DModel"}
    other = scaled_calibration(pipe).model_copy(update=changes)
    with pytest.raises(CalibrationError, match="FluxTransformer2DModel"):
        load(pipe, other)
    load(pipe, scaled_calibration(pipe))


def test_a_fused_folder_is_an_ordinary_pipeline_with_the_calibrated_images(pipe, tmp_path):
    folder = fuse(scaled_calibration(pipe), tmp_path / "fused")
    exact = fuse(scaled_calibration(pipe), tmp_path / "exact", dtype="float32")
    applied = load(pipe, scaled_calibration(pipe))
    # The shipped pipeline is stored in float16, to which the folded weights are rounded.
    for saved, tolerance in ((folder, 1e-3), (exact, 1e-4)):
        torch.testing.assert_close(
            sample(load_pipeline(str(saved), device="cpu")),
            sample(pipe),
            rtol=tolerance,
            atol=tolerance,
        )
    applied.unload()
    with pytest.raises(Exception, match="not an empty folder"):
        fuse(scaled_calibration(pipe), tmp_path / "fused")


def test_inspect_counts_and_lists(pipe):
    found = inspect(pipe, granularity="layer")
    assert found.counts == {"block": 6, "layer": 12, "gate": 22}
    assert found.sites[0].parameter == "transformer_blocks.0.attn"
    assert found.output == "proj_out"
    assert inspect(pipe.transformer).counts == found.counts


def test_an_ensemble_is_saved_loaded_and_unloaded_but_not_fused(pipe, tmp_path):
    before = sample(pipe)
    made = ensemble(pipe)
    applied = load(pipe, made.save_pretrained(tmp_path / "ensemble"))
    assert applied.calibration == made
    after = sample(pipe, count=2)
    assert not torch.allclose(after[:1], before, atol=1e-4)
    with pytest.raises(FuseError, match="sum of 2 members"):
        applied.fuse()
    applied.set_strength(0.0)
    assert torch.equal(sample(pipe), before)
    applied.set_strength(1.0)
    torch.testing.assert_close(sample(pipe, count=2), after)
    applied.unload()
    assert torch.equal(sample(pipe), before)
    assert "forward" not in vars(pipe.transformer)


def test_a_calibration_is_attached_to_a_bare_transformer(pipe):
    before = sample(pipe)
    applied = load(pipe.transformer, ensemble(pipe))
    after = sample(pipe)
    applied.unload()
    load(pipe, ensemble(pipe))
    assert torch.equal(sample(pipe), after)
    assert not torch.allclose(after, before, atol=1e-4)


def test_a_bare_transformer_is_told_the_branch(pipe):
    inputs, outputs = [], []
    transformer = pipe.transformer

    def keep(module, args, kwargs, output):
        inputs.append(kwargs)
        outputs.append(output[0])

    made = scaled_calibration(pipe, guidance_scale=3.0, branches="separate", outputs=[4.0, -1.5])
    applied = load(pipe, made)
    handle = transformer.register_forward_hook(keep, with_kwargs=True)
    sample(pipe, 3.0)
    handle.remove()
    applied.unload()
    applied = load(transformer, made)
    # Stable Diffusion 3 puts the unconditional row first.
    for row, name in enumerate(("unconditional", "conditional")):
        given = {
            key: value[row : row + 1] if isinstance(value, torch.Tensor) else value
            for key, value in inputs[0].items()
        }
        with applied.branch(name), torch.no_grad():
            ours = transformer(**given)[0]
        torch.testing.assert_close(ours[0], outputs[0][row], rtol=1e-4, atol=1e-5)
    with pytest.raises(GuidanceError, match="applied.branch"):
        transformer(**inputs[0])


def searched_with(pipe, negative_prompt, guidance_scale=3.0):
    made = scaled_calibration(pipe, guidance_scale=guidance_scale)
    sampling = made.sampling.model_copy(update={"negative_prompt": negative_prompt})
    return made.model_copy(update={"sampling": sampling})


def test_loading_says_which_negative_prompt_a_calibration_was_searched_with(pipe):
    with pytest.warns(UserWarning, match=r"negative_prompt='ugly'"):
        load(pipe, searched_with(pipe, "ugly")).unload()


@pytest.mark.filterwarnings("error")
def test_loading_is_silent_where_a_plain_call_uses_the_same_negative_prompt(pipe):
    load(pipe, searched_with(pipe, "")).unload()
    load(pipe, searched_with(pipe, "", guidance_scale=1.0)).unload()


@pytest.mark.filterwarnings("error")
def test_images_are_generated_with_the_negative_prompt_of_the_calibration(pipe):
    def image(searched, **given):
        made = searched_with(pipe, searched)
        return generate(pipe, "a red circle", calibration=made, **given)[0].tobytes()

    assert image("a blue square") != image("")
    assert image("a blue square") == image("", negative_prompt="a blue square")


def test_what_is_loaded_says_how_to_sample_with_it_and_its_state():
    shipped = load_pipeline("shapes", device="cpu")
    made = scaled_calibration(shipped)
    applied = load(shipped, made)
    assert repr(applied).endswith("num_inference_steps=3, guidance_scale=1.0>, strength 1>")
    applied.set_strength(0.5)
    assert "SD3Transformer2DModel" in repr(applied)
    assert repr(applied).endswith("strength 0.5>")
    applied.fuse()
    assert repr(applied).endswith("fused>")
    applied.unload()
    assert repr(applied).endswith("unloaded>")
