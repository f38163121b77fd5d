"""A LoRA in the weights: PEFT and diffusers say what must come of it."""

import json
import shutil

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from safetensors.torch import load_file, save_file

from calibri.errors import CalibrationError, UnsupportedModelError
from calibri.pipelines.loading import load_pipeline
from calibri.pipelines.lora import lora_file, lora_of, merge_lora
from tests.hub_server import Repository
from tests.loras import saved_by_diffusers, saved_by_peft
from tests.sampling.two_transformers import wan_2_2
from tests.tiny import flux_pipeline, tiny_sd3

REPO = "someone/an-alignment"


class Bare:
    """A pipeline of a transformer alone."""

    def __init__(self):
        self.transformer = tiny_sd3()
        self.config = {}


def merged(folder, pipe=None):
    pipe = pipe or Bare()
    merge_lora(pipe, str(folder), lora_file(str(folder)))
    return pipe.transformer


def assert_same(own, oracle, tolerance=1e-5):
    wanted = oracle.state_dict()
    assert own.state_dict().keys() == wanted.keys()
    for name, tensor in own.state_dict().items():
        torch.testing.assert_close(tensor, wanted[name], rtol=tolerance, atol=tolerance)


def changed(model):
    before = tiny_sd3().state_dict()
    return [name for name, tensor in model.state_dict().items() if (tensor != before[name]).any()]


@settings(max_examples=8, deadline=None)
@given(
    rank=st.integers(1, 5),
    alpha=st.integers(1, 20),
    rslora=st.booleans(),
    ranks=st.sampled_from([{}, {"to_q": 2}]),
    alphas=st.sampled_from([{}, {"to_k": 3}]),
)
def test_an_adapter_of_peft_is_merged_as_peft_merges_it(
    tmp_path_factory, rank, alpha, rslora, ranks, alphas
):
    folder = tmp_path_factory.mktemp("peft")
    saved_by_peft(
        tiny_sd3(), folder, r=rank, lora_alpha=alpha, use_rslora=rslora,
        rank_pattern=ranks, alpha_pattern=alphas,
    )  # fmt: skip
    oracle = PeftModel.from_pretrained(tiny_sd3(), folder).merge_and_unload()
    own = merged(folder)
    assert_same(own, oracle)
    assert changed(own)


def test_a_lora_of_diffusers_is_merged_as_diffusers_fuses_it(pipe, tmp_path):
    folder = saved_by_diffusers(pipe.transformer, tmp_path / "lora")
    own = load_pipeline("shapes", lora=str(folder), device="cpu")
    pipe.load_lora_weights(folder)
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    assert_same(own.transformer, pipe.transformer)


def test_the_file_alone_will_do(tmp_path):
    folder = saved_by_peft(tiny_sd3(), tmp_path / "lora")
    file = folder / "adapter_model.safetensors"
    assert_same(merged(file), merged(folder))
    renamed = tmp_path / "style.safetensors"
    shutil.copy(file, renamed)
    shutil.copy(folder / "adapter_config.json", tmp_path)
    assert_same(merged(renamed), merged(folder))


def test_in_half_precision_a_weight_is_rounded_once(tmp_path):
    folder = saved_by_peft(tiny_sd3(), tmp_path / "lora")
    half = Bare()
    half.transformer.to(torch.bfloat16)
    before = tiny_sd3().to(torch.bfloat16).double()
    oracle = PeftModel.from_pretrained(before, folder).double().merge_and_unload()
    wanted = oracle.to(torch.bfloat16)
    assert_same(merged(folder, half), wanted, tolerance=0)


def test_it_is_known_which_lora_a_pipeline_has(tmp_path):
    pipe = Bare()
    assert lora_of(pipe) is None
    folder = saved_by_peft(tiny_sd3(), tmp_path / "lora")
    merged(folder, pipe)
    first = lora_of(pipe)
    assert first.name == str(folder)
    other = Bare()
    merged(saved_by_peft(tiny_sd3(), tmp_path / "other", r=2), other)
    assert first.digest != lora_of(other).digest


def test_repositories_of_either_form_are_downloaded(hub, tmp_path):
    folder = saved_by_peft(tiny_sd3(), tmp_path / "lora")
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    hub.repositories[REPO] = Repository()
    hub.repositories[REPO].commit("main", files)
    wanted = merged(folder)
    assert_same(merged(REPO), wanted)
    assert_same(merged(f"{REPO}/adapter_model.safetensors"), wanted)
    named = {"pytorch_lora_weights.safetensors": files["adapter_model.safetensors"]}
    hub.repositories["someone/named"] = Repository()
    hub.repositories["someone/named"].commit("main", named)
    assert changed(merged("someone/named"))


def edited(tmp_path, change):
    folder = saved_by_peft(tiny_sd3(), tmp_path / "lora")
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    return folder


def of_another_model(tmp_path):
    return edited(tmp_path, lambda t: t.update({n.replace("0.", "9."): t.pop(n) for n in list(t)}))


def of_another_width(tmp_path):
    return edited(tmp_path, lambda t: t.update({n: t[n].repeat(2, 1) for n in t if "lora_B" in n}))


def with_text_encoder(tmp_path):
    part = {"text_encoder.text_model.layers.0.q_proj.lora_A.weight": torch.ones(2, 2)}
    return edited(tmp_path, lambda t: t.update(part))


def with_magnitudes(tmp_path):
    return saved_by_peft(tiny_sd3(), tmp_path / "lora", use_dora=True)


def whole_model(tmp_path):
    tiny_sd3().save_pretrained(tmp_path / "model")
    return tmp_path / "model" / "diffusion_pytorch_model.safetensors"


def damaged(tmp_path):
    (tmp_path / "adapter_model.safetensors").write_bytes(b"\x09 not a file of tensors")
    return tmp_path


def pickled(tmp_path):
    (tmp_path / "adapter_model.bin").write_bytes(b"")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4}))
    return tmp_path


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (of_another_model, "for another model"),
        (of_another_width, "does not fit"),
        (with_text_encoder, r"text encoders.*pipe.fuse_lora"),
        (with_magnitudes, "DoRA"),
        (whole_model, "no LoRA.*as the pipeline"),
        (damaged, "Cannot load the LoRA"),
        (pickled, "pickled files are never read"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_no_lora_of_this_transformer_is_refused_and_nothing_is_changed(
    make, words, tmp_path
):
    pipe = Bare()
    with pytest.raises((CalibrationError, UnsupportedModelError), match=words):
        merged(make(tmp_path), pipe)
    assert changed(pipe.transformer) == []
    assert lora_of(pipe) is None


@pytest.mark.parametrize(
    "name", ["nowhere", "../nowhere", f"{REPO}/../../c.safetensors", f"{REPO}/a.bin", ""]
)
def test_what_can_be_no_lora_is_refused_before_the_network_is_asked(name, hub):
    with pytest.raises(UnsupportedModelError, match="Cannot load the LoRA"):
        lora_file(name)
    assert hub.requests == []


def test_a_missing_lora_is_said_before_a_pipeline_is_loaded():
    with pytest.raises(UnsupportedModelError, match="Cannot load the LoRA 'nowhere'"):
        load_pipeline("no-pipeline-either", lora="nowhere")


def test_a_repository_without_one_is_refused(hub):
    hub.repositories[REPO] = Repository()
    hub.repositories[REPO].commit("main", {"README.md": b""})
    with pytest.raises(UnsupportedModelError, match="Cannot load the LoRA"):
        lora_file(REPO)


def test_a_pipeline_of_two_transformers_is_refused(tmp_path):
    folder = saved_by_peft(tiny_sd3(), tmp_path / "lora")
    with pytest.raises(UnsupportedModelError, match="2 transformers"):
        merged(folder, wan_2_2())


def test_a_lora_of_another_class_is_refused(tmp_path):
    folder = saved_by_peft(tiny_sd3(), tmp_path / "lora")
    with pytest.raises(CalibrationError, match="Pass the pipeline that the adapter was trained on"):
        merged(folder, flux_pipeline())


def test_diffusers_loads_what_diffusers_saved(pipe, tmp_path):
    """What the helper writes is what users have."""
    folder = saved_by_diffusers(pipe.transformer, tmp_path / "lora")
    assert StableDiffusion3Pipeline.lora_state_dict(folder)
