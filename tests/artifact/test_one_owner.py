"""A loaded calibration acts, says so where it would be lost, and belongs to one model."""

import copy
import pickle
import warnings

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch._dynamo import config as compiler

from calibri.artifact.apply import load
from calibri.coefficients.space import SearchSpace
from calibri.errors import CalibrationError, FuseError
from calibri.pipelines.loading import load_pipeline
from calibri.pipelines.sites.find import find_sites
from tests.artifact.loaded import ensemble, sample
from tests.tiny import scaled_calibration


@pytest.fixture
def pipe():
    return load_pipeline("shapes", device="cpu")


@pytest.fixture
def uncompiled():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def shifted(pipe):
    """A calibration that changes the shift of the schedule too."""
    space = SearchSpace.build(find_sites(pipe.transformer), "gate", search_shift=True)
    vector = space.start.copy()
    vector[:10] = 1.2
    vector[-1] = 2.0
    coefficients = space.coefficients(vector)
    assert coefficients.shift == 2.0
    return scaled_calibration(pipe).model_copy(update={"coefficients": coefficients})


def separate(pipe):
    return scaled_calibration(pipe, guidance_scale=3.0, branches="separate")


KINDS = pytest.mark.parametrize("make", [scaled_calibration, ensemble, separate, shifted])


@KINDS
def test_copies_and_pickles_of_a_hooked_model_are_refused_in_words(pipe, make):
    applied = load(pipe, make(pipe))
    for thing in (pipe, pipe.transformer, applied):
        with pytest.raises(CalibrationError, match=r"cannot be copied.*unload\(\)"):
            copy.deepcopy(thing)
    with pytest.raises(CalibrationError, match="cannot be copied or pickled"):
        pickle.dumps(pipe.transformer)
    applied.unload()
    other = copy.deepcopy(pipe)
    assert torch.equal(sample(other), sample(pipe))
    pickle.dumps(pipe.transformer)


def test_a_fused_model_is_copied_with_its_weights_and_without_its_owner(pipe):
    applied = load(pipe, scaled_calibration(pipe))
    applied.fuse()
    wanted = sample(pipe)
    other = copy.deepcopy(pipe)
    alone = pickle.dumps(pipe.transformer)
    weights = sum(p.numel() * p.element_size() for p in pipe.transformer.parameters())
    assert len(alone) < 1.5 * weights + 200_000  # no other part of the pipeline goes along
    applied.unload()
    assert torch.equal(sample(other), wanted)
    assert not torch.equal(sample(pipe), wanted)
    with pytest.raises(CalibrationError, match="already loaded"):
        load(other, scaled_calibration(pipe))


@KINDS
def test_saving_says_that_it_saves_the_original(pipe, make, tmp_path):
    scheduler = dict(pipe.scheduler.config)
    before = sample(pipe)
    applied = load(pipe, make(pipe))
    with pytest.warns(UserWarning, match=r"original model.*fuse\(\)") as said:
        pipe.save_pretrained(tmp_path / "pipeline")
    assert len(said) == 1
    with pytest.warns(UserWarning, match="original model"):
        pipe.transformer.save_pretrained(tmp_path / "transformer")
    reloaded = load_pipeline(str(tmp_path / "pipeline"), device="cpu")
    torch.testing.assert_close(sample(reloaded), before)
    # Saving notes the version in the configuration in use.
    version = {"_diffusers_version": pipe.scheduler.config["_diffusers_version"]}
    assert dict(pipe.scheduler.config) == scheduler | version
    assert reloaded.scheduler.shift == scheduler["shift"]
    applied.unload()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe.save_pretrained(tmp_path / "unloaded")
    assert "save_pretrained" not in vars(pipe) | vars(pipe.transformer)


def test_a_fused_pipeline_is_saved_without_a_word(pipe, tmp_path):
    applied = load(pipe, scaled_calibration(pipe))
    applied.fuse()
    pipe.save_pretrained(tmp_path / "fused")  # a warning is an error here
    reloaded = load_pipeline(str(tmp_path / "fused"), device="cpu")
    torch.testing.assert_close(sample(reloaded), sample(pipe))


def made_from(pipe):
    parts = dict(pipe.components)
    return type(pipe)(**parts)


@pytest.mark.parametrize("before_load", [True, False])
def test_pipelines_that_share_a_model_have_all_of_a_calibration_or_none(pipe, before_load):
    original = sample(pipe)
    other = made_from(pipe) if before_load else None
    applied = load(pipe, shifted(pipe))
    other = other or made_from(pipe)
    wanted = sample(pipe)
    assert not torch.equal(wanted, original)
    assert torch.equal(sample(other), wanted)
    applied.unload()
    assert torch.equal(sample(other), original)
    assert torch.equal(sample(pipe), original)


def test_a_scheduler_given_after_the_load_is_noticed_and_strength_mends_it(pipe):
    applied = load(pipe, shifted(pipe))
    wanted = sample(pipe)
    pipe.scheduler = FlowMatchEulerDiscreteScheduler.from_config(pipe.scheduler.config)
    with pytest.raises(CalibrationError, match=r"scheduler .* was replaced.*set_strength"):
        sample(pipe)
    applied.set_strength(1.0)
    assert torch.equal(sample(pipe), wanted)


def test_a_handle_that_was_unloaded_says_so(pipe):
    before = sample(pipe)
    applied = load(pipe, scaled_calibration(pipe))
    applied.unload()
    applied.unload()
    for verb in (applied.fuse, lambda: applied.set_strength(0.5)):
        with pytest.raises(CalibrationError, match="was unloaded"):
            verb()
    assert torch.equal(sample(pipe), before)


def test_unfusing_what_was_not_kept_changes_nothing(pipe):
    applied = load(pipe, scaled_calibration(pipe))
    applied.fuse(keep_originals=False)
    fused = sample(pipe)
    for verb in (applied.unfuse, applied.unload, applied.unfuse):
        with pytest.raises(FuseError, match="without keeping"):
            verb()
        assert torch.equal(sample(pipe), fused)


def compile_module(pipe):
    pipe.transformer.compile(backend="eager")


def compile_attribute(pipe):
    pipe.transformer = torch.compile(pipe.transformer, backend="eager")


@pytest.mark.slow
@pytest.mark.parametrize("how", [compile_module, compile_attribute])
def test_a_compiled_pipeline_is_loaded_fused_unfused_and_unloaded(pipe, how, uncompiled):
    original = sample(pipe)
    made = scaled_calibration(pipe)
    compiler.skip_nnmodule_hook_guards = True
    how(pipe)
    torch.testing.assert_close(sample(pipe), original)
    applied = load(pipe, made)
    hooked = sample(pipe)
    assert not torch.allclose(hooked, original, atol=1e-2)
    for _ in range(2):
        applied.fuse()
        torch.testing.assert_close(sample(pipe), hooked, rtol=1e-4, atol=1e-4)
        applied.unfuse()
        torch.testing.assert_close(sample(pipe), hooked)
    applied.unload()
    torch.testing.assert_close(sample(pipe), original)


@pytest.mark.slow
def test_a_graph_that_ignores_the_calibration_ends_in_words(pipe, uncompiled):
    compiler.skip_nnmodule_hook_guards = True
    compile_module(pipe)
    original = sample(pipe)
    compiler.skip_nnmodule_hook_guards = False  # as if all were well
    applied = load(pipe, scaled_calibration(pipe))
    with pytest.raises(CalibrationError, match=r"none of its scales acted.*compiler\.reset"):
        sample(pipe)
    torch.compiler.reset()
    assert not torch.allclose(sample(pipe), original, atol=1e-2)
    applied.unload()


def test_blocks_that_ignore_the_calibration_are_named(pipe):
    applied = load(pipe, scaled_calibration(pipe))
    first = pipe.transformer.transformer_blocks[0]
    # Stands for a graph that runs the block without what is hooked onto its parts.
    parts = [m for m in first.modules() if m._forward_hooks]
    for part in parts:
        part._forward_hooks.clear()
    with pytest.warns(UserWarning, match=r"did not run.*transformer_blocks\.0\."):
        sample(pipe)
    applied.unload()
