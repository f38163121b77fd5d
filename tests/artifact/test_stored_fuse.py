"""Folding into stored files is folding in memory, in the dtypes and shards that are stored."""

import json
import warnings

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline
from safetensors.torch import load_file, safe_open

from calibri.artifact.apply import load
from calibri.artifact.calibration import Calibration, Sampling
from calibri.artifact.fuse import fuse
from calibri.artifact.survival import kept_of, survival
from calibri.coefficients.space import SearchSpace
from calibri.errors import CalibriWarning, FuseError, RunError, UnsupportedModelError
from calibri.pipelines.loading import load_pipeline
from calibri.pipelines.networks import networks_of, sites_of
from calibri.pipelines.skeletons import load_skeletons
from calibri.sampling.scales.fold import FoldStep
from tests.sampling.two_transformers import wan_2_2
from tests.tiny import tiny_flux

SHARD = 20_000


def sd3():
    return load_pipeline("shapes", device="cpu")


def flux():
    """A pipeline that has nothing but its transformer and a scheduler."""
    parts = dict.fromkeys(("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    return FluxPipeline(FlowMatchEulerDiscreteScheduler(), transformer=tiny_flux(), **parts)


def made(pipe, sigma=0.3):
    networks = networks_of(pipe)
    space = SearchSpace.build(sites_of(networks), "gate")
    generator = torch.Generator().manual_seed(4)
    vector = space.start + sigma * torch.randn(len(space.start), generator=generator).numpy()
    return Calibration(
        calibri_version="0",
        transformer_class=type(networks[0].transformer).__name__,
        base_model="shapes",
        coefficients=space.coefficients(vector),
        sampling=Sampling(num_inference_steps=3, guidance_scale=1.0, dtype="float32"),
        rewards={"shapes": "test"},
        objective="shapes",
        provenance={},
    )


def weights(folder):
    files = sorted(folder.glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def stored(pipe, folder, dtype, **options):
    pipe.to(dtype=dtype)
    pipe.save_pretrained(folder, **options)
    return folder


DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])


@DTYPES
@pytest.mark.parametrize("shards", [{}, {"max_shard_size": SHARD}], ids=["one", "shards"])
@pytest.mark.parametrize("build", [sd3, flux, wan_2_2])
def test_files_hold_what_memory_would(build, shards, dtype, tmp_path):
    pipe = build()
    original = stored(pipe, tmp_path / "original", dtype, **shards)
    folder = fuse(made(pipe), tmp_path / "fused", pipeline=str(original))
    load(pipe, made(pipe)).fuse(keep_originals=False)
    assert bool(shards) == (len(list((original / "transformer").glob("*.safetensors"))) > 1)
    changed = 0
    for network in networks_of(pipe):
        part = network.name or "transformer"
        found, before = weights(folder / part), weights(original / part)
        state = network.transformer.state_dict()
        assert found.keys() == before.keys()
        for name, tensor in found.items():
            assert tensor.dtype == dtype
            assert torch.equal(tensor, state[name]), name
            changed += not torch.equal(tensor, before[name])
    assert changed > 10
    listed = [
        sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())
        for root in (original, folder)
    ]
    assert listed[0] == listed[1]
    for name in listed[0]:
        if not name.endswith(".safetensors") or "transformer" not in name:
            assert (original / name).read_bytes() == (folder / name).read_bytes()
    assert [network.name for network in load_skeletons(str(folder))] == [
        network.name for network in networks_of(pipe)
    ]


def test_the_header_of_a_file_stays(tmp_path):
    pipe = sd3()
    original = stored(pipe, tmp_path / "original", torch.bfloat16)
    folder = fuse(made(pipe), tmp_path / "fused", pipeline=str(original))
    name = "transformer/diffusion_pytorch_model.safetensors"
    with safe_open(original / name, "pt") as before, safe_open(folder / name, "pt") as after:
        assert after.metadata() == before.metadata()
        assert list(after.keys()) == list(before.keys())
    assert (folder / name).stat().st_size == (original / name).stat().st_size


def test_weights_in_other_formats_do_not_go_along(tmp_path):
    pipe = sd3()
    original = stored(pipe, tmp_path / "original", torch.float32)
    pipe.transformer.save_pretrained(original / "transformer", variant="fp16")
    (original / "transformer" / "diffusion_pytorch_model.bin").write_bytes(b"other")
    (original / "whole.safetensors").write_bytes(b"other")
    (original / "LICENSE").write_text("free")
    folder = fuse(made(pipe), tmp_path / "fused", pipeline=str(original))
    assert (folder / "LICENSE").read_text() == "free"
    assert not (folder / "whole.safetensors").exists()
    assert sorted(path.name for path in (folder / "transformer").iterdir()) == [
        "config.json",
        "diffusion_pytorch_model.safetensors",
    ]


def test_a_dtype_that_is_asked_for_converts_everything(tmp_path):
    pipe = sd3()
    original = stored(pipe, tmp_path / "original", torch.bfloat16)
    folder = fuse(made(pipe), tmp_path / "fused", pipeline=str(original), dtype="float32")
    assert {t.dtype for t in weights(folder / "transformer").values()} == {torch.float32}


def test_shards_outside_of_the_folder_are_refused(tmp_path):
    pipe = sd3()
    original = stored(pipe, tmp_path / "original", torch.float32, max_shard_size=SHARD)
    index = original / "transformer" / "diffusion_pytorch_model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"] = dict.fromkeys(content["weight_map"], "../../elsewhere.safetensors")
    index.write_text(json.dumps(content))
    with pytest.raises(UnsupportedModelError, match="outside of its folder"):
        fuse(made(pipe), tmp_path / "fused", pipeline=str(original))


def test_weights_in_eight_bits_are_refused(tmp_path):
    pipe = sd3()
    original = stored(pipe, tmp_path / "original", torch.float8_e4m3fn)
    with pytest.raises(FuseError, match="before quantising"):
        fuse(made(pipe), tmp_path / "fused", pipeline=str(original))
    assert not (tmp_path / "fused").exists()


def test_what_is_not_finished_is_no_pipeline(tmp_path, monkeypatch):
    pipe = sd3()
    original = stored(pipe, tmp_path / "original", torch.float32)

    def full(self, weight):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(FoldStep, "multiply", full)
    with pytest.raises(RunError, match="No space left"):
        fuse(made(pipe), tmp_path / "fused", pipeline=str(original))
    assert not (tmp_path / "fused" / "model_index.json").exists()


def test_a_weak_calibration_in_few_bits_is_told(tmp_path):
    pipe = sd3()
    original = stored(pipe, tmp_path / "original", torch.bfloat16)
    with pytest.warns(CalibriWarning, match=r"wants [\d.]+ and gets [\d.]+.*float32"):
        fuse(made(pipe, 0.003), tmp_path / "weak", pipeline=str(original))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fuse(made(pipe, 0.3), tmp_path / "strong", pipeline=str(original))
        fuse(made(pipe, 0.003), tmp_path / "exact", pipeline=str(original), dtype="float32")


@pytest.mark.parametrize(("scale", "changed"), [(1.0019, 0.0), (1.004, 1.0)])
def test_survival_is_what_rounding_leaves(scale, changed):
    """Half a step of bfloat16 is between 2**-9 and 2**-8 of a number."""
    before = torch.rand(10_000, generator=torch.Generator().manual_seed(0)).bfloat16() + 1
    after = before.clone()
    step = FoldStep("a", "a.weight", None, scale)
    step.multiply(after)
    (found,) = survival([kept_of(step, before, after)])
    assert (found.site, found.wanted) == ("a", scale)
    assert found.changed == pytest.approx(float((after != before).double().mean()))
    assert (found.changed == 0) == (changed == 0)
    exact = before.double()
    rounding = (after.double() - scale * exact).norm() / ((scale - 1) * exact).norm()
    assert found.noise == pytest.approx(float(rounding))
    assert found.effective == pytest.approx(
        float((after.double() @ exact) / (exact @ exact)), rel=1e-9
    )
