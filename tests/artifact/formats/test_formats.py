"""Formats of other tools, read back by those tools or by their own formula."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from diffusers import (
    CogVideoXTransformer3DModel,
    Lumina2Transformer2DModel,
    QwenImageTransformer2DModel,
)
from peft import PeftModel
from safetensors.torch import load_file

from calibri.artifact.export import export
from calibri.artifact.formats.authors import AuthorsFile, import_authors_vector
from calibri.artifact.formats.linears import linear_scales
from calibri.coefficients.space import SearchSpace
from calibri.errors import FuseError, RunError
from calibri.pipelines.networks import TRANSFORMERS, sites_of
from calibri.pipelines.sites.find import find_sites
from calibri.pipelines.skeletons import load_skeleton
from calibri.sampling.scales.fold import Fused
from tests.sampling import two_transformers
from tests.tiny import (
    calibration_of,
    flux_inputs,
    forward,
    randomise,
    sd3_inputs,
    tiny_flux,
    tiny_sd3,
)

MODELS = [(tiny_flux, flux_inputs), (tiny_sd3, sd3_inputs)]


def calibration(model, *, seed=0, base_model="here", **space):
    built = SearchSpace.build(find_sites(model), space.pop("granularity", "gate"), **space)
    vector = built.start + np.random.default_rng(seed).uniform(-1.5, 0.5, built.size)
    return calibration_of(model, built.coefficients(vector), base_model, num_inference_steps=4)


def fused(model, made):
    """The oracle: the same scales folded into the weights."""
    Fused(model, made.coefficients.site_scales(find_sites(model))[0].tolist())
    return model


@pytest.fixture
def saved(tmp_path):
    """A folder with the transformer of a pipeline alone."""

    def save(model):
        model.save_pretrained(tmp_path / "pipeline" / "transformer")
        return str(tmp_path / "pipeline")

    return save


@pytest.mark.parametrize(("make", "inputs"), MODELS)
def test_peft_loads_the_adapter_and_merges_it(make, inputs, saved, tmp_path):
    made = calibration(make(), base_model=saved(make()))
    folder = export(made, tmp_path / "adapter", format="peft")
    expected = forward(fused(make(), made), inputs())
    adapted = PeftModel.from_pretrained(make(), str(folder))
    found = forward(adapted, inputs())
    merged = forward(adapted.merge_and_unload(), inputs())
    for output in (found, merged):
        assert (output - expected).abs().max() <= 2e-6 * expected.abs().max()


def test_peft_scales_only_what_the_calibration_scales(saved, tmp_path):
    # `proj_out` is also the end of the names of single blocks, which keep their scale of 1.
    model = tiny_flux()
    space = SearchSpace.build(find_sites(model), "gate")
    vector = space.start.copy()
    vector[-1] = 1.5
    made = calibration(model, base_model=saved(model)).model_copy(
        update={"coefficients": space.coefficients(vector)}
    )
    folder = export(made, tmp_path / "adapter", format="peft")
    adapted = PeftModel.from_pretrained(tiny_flux(), str(folder))
    names = [name for name, _ in adapted.named_parameters() if "ia3_l" in name]
    assert names == ["base_model.model.proj_out.ia3_l.default"]


def test_a_gate_in_a_shared_linear_is_a_range_of_its_rows(tmp_path):
    model = randomise(
        CogVideoXTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=4,
            out_channels=4,
            time_embed_dim=4,
            text_embed_dim=8,
            num_layers=1,
            sample_width=8,
            sample_height=8,
            sample_frames=5,
            max_text_seq_length=4,
        )
    )
    before = {name: value.clone() for name, value in model.state_dict().items()}
    made = calibration(model)
    scales = linear_scales(made.coefficients, model)
    after = fused(model, made).state_dict()
    assert {p for p in before if not torch.equal(before[p], after[p])} == {
        f"{path}.{kind}" for path in scales for kind in ("weight", "bias")
    }
    for path, factors in scales.items():
        rows = before[f"{path}.weight"].double() * factors[:, None]
        torch.testing.assert_close(after[f"{path}.weight"].double(), rows, rtol=1e-6, atol=0)
    assert any(len(set(factors.tolist())) > 2 for factors in scales.values())


def test_the_authors_file_is_read_back(saved, tmp_path):
    made = calibration(tiny_flux(), base_model=saved(tiny_flux()), members=2)
    file = export(made, tmp_path / "x.json", format="authors")
    again = import_authors_vector(AuthorsFile.read(file), tiny_flux(), members=2)
    assert again.coefficients == made.coefficients


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ({"members": 2}, "weighted sum of 2 members"),
        ({"knots": 3}, "3 knots"),
        ({"guidance_scale": 3.0, "branches": "separate"}, "conditional and the unconditional"),
    ],
)
@pytest.mark.parametrize("format", ["comfyui", "peft"])
def test_what_one_set_of_weights_cannot_hold_is_refused(space, said, format, saved, tmp_path):
    made = calibration(tiny_sd3(), base_model=saved(tiny_sd3()), **space)
    with pytest.raises(FuseError, match=f"{said}.*calibri.load"):
        export(made, tmp_path / "made", format=format)
    assert not (tmp_path / "made").exists()


@pytest.fixture
def wan_2_2(tmp_path):
    """The configurations of a pipeline with two transformers, and a calibration of both."""
    pipe = two_transformers.wan_2_2()
    folder = tmp_path / "pipeline"
    for part in ("transformer", "transformer_2"):
        getattr(pipe, part).save_config(folder / part)
    index = {
        "_class_name": "WanPipeline",
        "boundary_ratio": 0.75,
        **{part: ["diffusers", "WanTransformer3DModel"] for part in TRANSFORMERS[:2]},
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    space = SearchSpace.build(sites_of(pipe), "gate")
    vector = space.start + np.random.default_rng(2).uniform(0.1, 0.5, space.size)
    return calibration_of(pipe.transformer, space.coefficients(vector), str(folder))


def test_both_transformers_of_a_pipeline_go_to_comfyui(wan_2_2, tmp_path):
    folder = export(wan_2_2, tmp_path / "mine", format="comfyui", strength=0.5)
    written = sorted(path.name for path in folder.iterdir())
    assert written == ["high_noise.safetensors", "low_noise.safetensors", "workflow.json"]
    scales = wan_2_2.coefficients.scales[0]
    for name, prefix in (("high_noise", ""), ("low_noise", "transformer_2.")):
        rescale = load_file(folder / f"{name}.safetensors")[
            "diffusion_model.blocks.0.self_attn.o.rescale"
        ]
        expected = 1 + 0.5 * (scales[f"{prefix}blocks.0.attn1"] - 1)
        assert rescale.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("format", ["peft", "flux-blocks", "authors"])
def test_a_format_of_one_transformer_refuses_two(format, wan_2_2, tmp_path):
    with pytest.raises(FuseError, match="of 2 transformers.*calibri fuse"):
        export(wan_2_2, tmp_path / "mine", format=format)
    assert not (tmp_path / "mine").exists()


def test_layers_that_a_format_does_not_know_are_refused():
    with torch.device("meta"):
        qwen = QwenImageTransformer2DModel(num_layers=1)
        lumina = Lumina2Transformer2DModel()
    with pytest.raises(FuseError, match="linear layers only"):
        linear_scales(calibration(lumina).coefficients, lumina)
    assert linear_scales(calibration(qwen).coefficients, qwen)


def test_an_existing_output_is_left_alone(tmp_path):
    (tmp_path / "x").write_text("mine")
    with pytest.raises(RunError, match="exists"):
        export(calibration(tiny_sd3()), tmp_path / "x", format="peft")
    assert (tmp_path / "x").read_text() == "mine"


def test_the_folder_of_an_adapter_is_complete(tmp_path):
    made = calibration(load_skeleton("shapes"), base_model="shapes")
    folder = export(made, tmp_path / "deep" / "adapter", format="peft")
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "shapes"
    assert config["peft_type"] == "IA3"
