"""What was fused comes out again; what is no scaling is said to be none."""

import json
import math
import shutil
import tracemalloc
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from calibri.artifact.calibration import Calibration
from calibri.artifact.change import change_by, change_of, total
from calibri.artifact.extract import extract
from calibri.artifact.fuse import fuse
from calibri.coefficients.space import SearchSpace
from calibri.errors import CalibrationError, CalibriError, RunError, UnsupportedModelError
from calibri.pipelines.networks import networks_of, sites_of
from calibri.pipelines.skeletons import load_skeletons
from tests.artifact.test_stored_fuse import flux, sd3, stored
from tests.pipelines.zoo import ZOO
from tests.sampling.two_transformers import wan_2_2
from tests.tiny import calibration_of

NAME = "diffusion_pytorch_model.safetensors"
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def drawn(model, granularity="gate", seed=0, sigma=0.3):
    """A random calibration of a pipeline or transformer, its output weight too."""
    networks = networks_of(model)
    space = SearchSpace.build(sites_of(networks), granularity)
    noise = torch.randn(space.size, generator=torch.Generator().manual_seed(seed)).double()
    coefficients = space.coefficients(space.start + sigma * noise.numpy())
    return calibration_of(networks[0].transformer, coefficients)


def fused(calibration, folder, base):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return str(fuse(calibration, folder, pipeline=str(base)))


def values(coefficients):
    output = coefficients.output_weights[0] / coefficients.start_weights[0]
    return {**coefficients.scales[0], "output": output}


def worst(found, wanted):
    found, wanted = values(found), values(wanted)
    assert found.keys() == wanted.keys()
    return max(abs(found[name] - value) for name, value in wanted.items())


@pytest.fixture
def base(tmp_path):
    return str(stored(sd3(), tmp_path / "base", torch.float32))


def edited(base, folder, change):
    """A copy of a model with other weights of its transformer."""
    shutil.copytree(base, folder)
    path = folder / "transformer" / NAME
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    return str(folder)


def some_bias(tensors):
    return next(name for name in tensors if name.endswith("attn.to_out.0.bias"))


@pytest.mark.parametrize("shards", [{}, {"max_shard_size": 20_000}], ids=["one", "shards"])
@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("build", [sd3, flux, wan_2_2])
def test_what_was_fused_comes_out_within_the_rounding_of_a_number(build, kind, shards, tmp_path):
    pipe = build()
    original = stored(pipe, tmp_path / "base", TYPES[kind], **shards)
    wanted = drawn(pipe)
    found = extract(original, fused(wanted, tmp_path / "fused", original), output=tmp_path / "made")
    assert found.is_scaling
    made = Calibration.from_pretrained(tmp_path / "made")
    unit = torch.finfo(TYPES[kind]).eps
    assert worst(made.coefficients, wanted.coefficients) <= max(1e-9, unit / 4)
    for site in found.sites:
        value = values(wanted.coefficients)[site.name]
        assert site.verdict == "scaling"
        assert site.low - 1e-9 <= value <= site.high + 1e-9
        assert site.explained == pytest.approx(1, abs=0.1)
    # Weights that are stored come out again to the byte.
    again = fused(made, tmp_path / "again", original)
    assert extract(tmp_path / "fused", again).verdict == (
        "TUNED is BASE: no weight differs beyond rounding."
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.FluxPosEmbed")  # of diffusers' own use
@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("specimen", ZOO, ids=lambda s: f"{s.model_class}{s.variant}")
def test_every_family_gives_its_scalars_back(specimen, kind, tmp_path):
    """Scales multiplied into the branches' weights by the rows of the family, and nothing else."""
    from calibri.sampling import Fused

    model = specimen.model().to(TYPES[kind])
    model.save_pretrained(tmp_path / "base")
    sites = sites_of(model)
    folds = [bool(site.fold) for site in sites]
    scales = torch.rand(len(sites) + 1, generator=torch.Generator().manual_seed(3)).double() + 0.5
    scales = [float(s) if f else 1.0 for s, f in zip(scales, [*folds, True], strict=True)]
    Fused(model, scales, keep_originals=False)
    model.save_pretrained(tmp_path / "tuned")
    found = extract(tmp_path / "base", tmp_path / "tuned")
    assert found.is_scaling, found.verdict
    for site, scale in zip(found.sites, scales, strict=True):
        assert site.scale == pytest.approx(scale, rel=torch.finfo(TYPES[kind]).eps)


@pytest.mark.parametrize("granularity", ["block", "layer"])
def test_it_is_said_when_sites_share_a_scalar(granularity, base, tmp_path):
    wanted = drawn(load_skeletons(base), granularity)
    tuned = fused(wanted, tmp_path / "fused", base)
    found = extract(base, tuned, granularity=granularity, output=tmp_path / "made")
    assert granularity in found.shared
    assert f"one scalar per {granularity} is enough" in found.verdict
    assert (
        worst(Calibration.from_pretrained(tmp_path / "made").coefficients, wanted.coefficients)
        < 1e-9
    )
    finer = fused(drawn(load_skeletons(base), seed=1), tmp_path / "finer", base)
    assert extract(base, finer).shared == ()
    with pytest.raises(CalibrationError, match=f"sites of a {granularity}.*different factors"):
        extract(base, finer, granularity=granularity, output=tmp_path / "other")


@given(
    scale=st.floats(-3, 3).filter(lambda s: abs(s) > 1e-3),
    kind=st.sampled_from([*TYPES, "fp64"]),
    target=st.sampled_from([*TYPES, "fp64"]),
    seed=st.integers(0, 99),
)
def test_a_rounded_product_is_a_scaling_and_its_scale_is_between_the_bounds(
    scale, kind, target, seed
):
    types = {**TYPES, "fp64": torch.float64}
    exact = torch.randn(64, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    before = exact.to(types[kind])
    finer = torch.finfo(types[target]).bits > torch.finfo(types[kind]).bits
    after = ((exact if finer else before.double()) * scale).to(types[target])
    change = change_of(before, after)
    assert change.is_scaling
    assert change.low <= scale + 1e-12 * abs(scale)
    assert change.high >= scale - 1e-12 * abs(scale)


@given(seed=st.integers(0, 99), kind=st.sampled_from([*TYPES]), place=st.integers(0, 63))
def test_one_number_that_moved_by_a_unit_is_no_scaling(seed, kind, place):
    generator = torch.Generator().manual_seed(seed)
    before = (torch.rand(64, generator=generator) + 0.5).to(TYPES[kind])
    after = before.clone()
    after[place] *= 1 + 2 * torch.finfo(TYPES[kind]).eps
    assert not change_of(before, after).is_scaling


@given(
    cut=st.integers(0, 50),
    seed=st.integers(0, 99),
    kind=st.sampled_from([*TYPES]),
    zero=st.booleans(),
)
def test_the_parts_of_a_change_add_up_to_it(cut, seed, kind, zero):
    generator = torch.Generator().manual_seed(seed)
    before = torch.randn(50, generator=generator).to(TYPES[kind]) * (not zero)
    after = torch.randn(50, generator=generator).to(TYPES[kind])
    whole = change_of(before, after)
    parts = total([change_of(before[:cut], after[:cut]), change_of(before[cut:], after[cut:])])
    for name, value in vars(whole).items():
        assert getattr(parts, name) == pytest.approx(value, rel=1e-9, abs=1e-9), name


def test_the_best_scale_is_that_of_least_squares():
    generator = torch.Generator().manual_seed(0)
    before, delta = torch.randn(2, 40, generator=generator, dtype=torch.float64)
    change = change_by(before, delta)
    solution, left, *_ = np.linalg.lstsq(before[:, None].numpy(), (before + delta).numpy(), None)
    assert change.best == pytest.approx(solution[0])
    assert change.left == pytest.approx(left[0])
    assert change.explained == pytest.approx(change.power - change.left)


def test_the_residual_of_a_scaling_is_what_rounding_is_expected_to_leave(tmp_path):
    pipe = sd3()
    original = stored(pipe, tmp_path / "base", torch.bfloat16)
    found = extract(original, fused(drawn(pipe), tmp_path / "fused", original))
    for site in found.sites:
        assert site.residual == pytest.approx(site.rounding, rel=0.2)


def test_a_fine_tune_is_no_scaling_and_its_share_is_told(base, tmp_path):
    def tune(tensors):
        for name, tensor in tensors.items():
            noise = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(len(name)))
            tensors[name] = tensor + 0.01 * noise

    tuned = edited(base, tmp_path / "tuned", tune)
    found = extract(base, tuned)
    assert not found.is_scaling
    assert found.elsewhere
    assert found.explained < 0.01
    with pytest.raises(CalibrationError, match="no scaling of BASE.*Nothing was written"):
        extract(base, tuned, output=tmp_path / "made")
    assert not (tmp_path / "made").exists()
    made = extract(base, tuned, output=tmp_path / "made", project=True).folder
    record = Calibration.from_pretrained(made)
    assert record.provenance["projection"].startswith("yes")
    assert values(record.coefficients) == pytest.approx({s.name: s.scale for s in found.sites})


def test_a_bias_that_was_left_out_is_named(base, tmp_path):
    tuned = fused(drawn(load_skeletons(base)), tmp_path / "fused", base)
    original = load_file(f"{base}/transformer/{NAME}")
    name = some_bias(original)
    broken = edited(tuned, tmp_path / "broken", lambda t: t.update({name: original[name]}))
    found = extract(base, broken)
    site = name.removesuffix(".to_out.0.bias") + "[0]"
    assert [s.name for s in found.sites if s.verdict == "disagree"] == [site]
    assert f"'{site}' were scaled by different factors" in found.verdict


def test_a_change_beside_the_sites_is_named(base, tmp_path):
    tuned = fused(drawn(load_skeletons(base)), tmp_path / "fused", base)
    name = "context_embedder.bias"
    other = edited(tuned, tmp_path / "other", lambda t: t[name].add_(1))
    found = extract(base, other)
    assert found.elsewhere == (name,)
    assert name in found.verdict
    assert {s.verdict for s in found.sites} == {"scaling"}


def test_rows_beside_those_of_a_site_are_looked_at_too(tmp_path):
    """The gates of CogVideoX are two of the six parts of a linear's rows."""
    specimen = next(s for s in ZOO if s.model_class == "CogVideoXTransformer3DModel")
    specimen.model().save_pretrained(tmp_path / "base")
    shutil.copytree(tmp_path / "base", tmp_path / "tuned")
    tensors = load_file(tmp_path / "base" / NAME)  # which stays as it is, unlike the other
    name = "transformer_blocks.0.norm1.linear.weight"
    for row in (0, len(tensors[name]) - 1):  # a gate is the last part, a shift the first
        moved = {**tensors, name: tensors[name].clone()}
        moved[name][row] *= 2
        save_file(moved, tmp_path / "tuned" / NAME)
        found = extract(tmp_path / "base", tmp_path / "tuned")
        assert found.elsewhere == (() if row else (name,))
        assert ({s.verdict for s in found.sites} == {"unchanged"}) == (row == 0)


def test_nothing_is_shared_where_every_site_stands_alone(tmp_path):
    pipe = wan_2_2()
    original = stored(pipe, tmp_path / "base", torch.float32)
    assert extract(original, fused(drawn(pipe), tmp_path / "fused", original)).shared == ()


def test_names_that_only_diffusers_knows_are_translated(tmp_path):
    """Those of the first code of FLUX, in kohya's spelling."""
    base = stored(flux(), tmp_path / "base", torch.float32)
    shape = load_file(base / "transformer" / NAME)[f"{LAYER}.weight"].shape
    tensors = {
        "lora_unet_double_blocks_0_img_attn_proj.lora_down.weight": torch.ones(2, shape[1]),
        "lora_unet_double_blocks_0_img_attn_proj.lora_up.weight": torch.ones(shape[0], 2),
        "lora_unet_double_blocks_0_img_attn_proj.alpha": torch.tensor(1.0),
    }
    save_file(tensors, tmp_path / "lora.safetensors")
    found = extract(base, tmp_path / "lora.safetensors")
    powers = {site.name: site.power for site in found.sites if site.power}
    assert powers == pytest.approx({"transformer_blocks.0.attn[0]": shape.numel()})


def test_the_wrong_order_is_seen(base, tmp_path):
    tuned = fused(drawn(load_skeletons(base)), tmp_path / "fused", base)
    assert "wrong order" in extract(tuned, base).verdict
    with pytest.raises(CalibrationError, match="Pass the original model first"):
        extract(tuned, base, output=tmp_path / "made")


def test_the_same_model_twice_has_nothing_to_extract(base, tmp_path):
    with pytest.raises(CalibrationError, match="no weight differs"):
        extract(base, base, output=tmp_path / "made")
    stored(sd3(), tmp_path / "half", torch.bfloat16)
    assert "no weight differs" in extract(base, tmp_path / "half").verdict


def test_transformers_alone_and_single_files_are_as_good(base, tmp_path):
    wanted = drawn(load_skeletons(base))
    tuned = fused(wanted, tmp_path / "fused", base)
    whole = extract(base, tuned)
    assert extract(f"{base}/transformer", f"{tuned}/transformer").sites == whole.sites
    assert extract(base, f"{tuned}/transformer/{NAME}").sites == whole.sites
    tensors = load_file(f"{tuned}/transformer/{NAME}")
    save_file(
        {f"model.diffusion_model.{n}": t for n, t in tensors.items()}, tmp_path / "x.safetensors"
    )
    assert extract(base, tmp_path / "x.safetensors").sites == whole.sites


def lora(base, spelling="diffusers", alpha=None, align=0.0):
    """A LoRA on one projection, and the change that it makes."""
    weight = load_file(f"{base}/transformer/{NAME}")[f"{LAYER}.weight"].double()
    generator = torch.Generator().manual_seed(5)
    u, s, v = torch.linalg.svd(weight)
    noise = torch.randn(weight.shape[0], 4, generator=generator).double()
    up, down = 0.1 * noise + align * u[:, :4] * s[:4], v[:4]
    names = {
        "diffusers": (f"transformer.{LAYER}.lora_A.weight", f"transformer.{LAYER}.lora_B.weight"),
        "peft": (f"base_model.model.{LAYER}.lora_A.default.weight",)
        + (f"base_model.model.{LAYER}.lora_B.default.weight",),
        "kohya": tuple(
            f"lora_unet_{LAYER.replace('.', '_')}.lora_{side}.weight" for side in ("down", "up")
        ),
    }[spelling]
    tensors = {name: t.float().contiguous() for name, t in zip(names, (down, up), strict=True)}
    if alpha is not None:
        stem = names[0].rsplit(".lora", 1)[0]
        tensors[f"{stem}.alpha"] = torch.tensor(float(alpha))
    factor = 1.0 if alpha is None else alpha / 4
    return tensors, weight, factor * (tensors[names[1]].double() @ tensors[names[0]].double())


LAYER = "transformer_blocks.0.attn.to_out.0"


@pytest.mark.parametrize("alpha", [None, 8])
@pytest.mark.parametrize("spelling", ["diffusers", "peft", "kohya"])
def test_a_lora_is_told_by_how_much_it_scales(spelling, alpha, base, tmp_path):
    tensors, weight, delta = lora(base, spelling, alpha, align=0.2)
    save_file(tensors, tmp_path / "lora.safetensors")
    found = extract(base, tmp_path / "lora.safetensors")
    bias = load_file(f"{base}/transformer/{NAME}")[f"{LAYER}.bias"].double()
    site = next(s for s in found.sites if s.name == "transformer_blocks.0.attn[0]")
    square = float(weight.square().sum() + bias.square().sum())
    product, power = float((weight * delta).sum()), float(delta.square().sum())
    assert site.scale == pytest.approx(1 + product / square)
    assert site.explained == pytest.approx(product**2 / square / power)
    assert found.explained == pytest.approx(site.explained)
    assert found.at_sites == 1
    assert found.is_adapter
    assert {s.verdict for s in found.sites if s is not site} == {"unchanged"}
    with pytest.raises(CalibrationError, match="--project"):
        extract(base, tmp_path / "lora.safetensors", output=tmp_path / "made")


def test_the_alpha_of_a_lora_stands_in_its_settings_too(base, tmp_path):
    tensors, _, delta = lora(base)
    settings = json.dumps({"transformer.r": 4, "transformer.lora_alpha": 12})
    save_file(tensors, tmp_path / "a.safetensors", {"lora_adapter_metadata": settings})
    power = sum(s.power for s in extract(base, tmp_path / "a.safetensors").sites)
    assert power == pytest.approx(9 * float(delta.square().sum()))


def test_a_lora_elsewhere_explains_nothing(base, tmp_path):
    width = load_file(f"{base}/transformer/{NAME}")[f"{LAYER}.weight"].shape[1]
    path = "transformer.transformer_blocks.0.attn.to_q"
    tensors = {
        f"{path}.lora_A.weight": torch.ones(1, width),
        f"{path}.lora_B.weight": torch.ones(width, 1),
    }
    save_file(tensors, tmp_path / "lora.safetensors")
    found = extract(base, tmp_path / "lora.safetensors")
    assert (found.explained, found.at_sites) == (0, 0)
    assert found.elsewhere == ("transformer_blocks.0.attn.to_q.weight",)
    assert found.power_elsewhere == pytest.approx(width**2)


ADAPTERS = {
    "another model": {"transformer.no.such.lora_A.weight": torch.ones(1, 4)},
    "more than low-rank": {f"transformer.{LAYER}.lora_magnitude_vector": torch.ones(4)},
    "another shape": {
        f"transformer.{LAYER}.lora_A.weight": torch.ones(1, 3),
        f"transformer.{LAYER}.lora_B.weight": torch.ones(3, 1),
    },
    "is missing": {f"transformer.{LAYER}.lora_A.weight": torch.ones(1, 96)},
}


@pytest.mark.parametrize("words", ADAPTERS)
def test_an_adapter_that_does_not_fit_is_refused(words, base, tmp_path):
    save_file(ADAPTERS[words], tmp_path / "lora.safetensors")
    with pytest.raises(CalibrationError, match=words):
        extract(base, tmp_path / "lora.safetensors")
    with pytest.raises(CalibrationError, match="comes first"):
        extract(tmp_path / "lora.safetensors", base)


def test_another_model_is_refused(base, tmp_path):
    stored(flux(), tmp_path / "flux", torch.float32)
    with pytest.raises(CalibrationError, match="different models"):
        extract(base, tmp_path / "flux")
    lost = edited(base, tmp_path / "lost", lambda t: t.pop(some_bias(t)))
    with pytest.raises(CalibrationError, match=r"1 of BASE are missing .*to_out.0.bias"):
        extract(base, lost)
    cut = edited(base, tmp_path / "cut", lambda t: t.update({some_bias(t): torch.ones(3)}))
    with pytest.raises(CalibrationError, match="has the shape 3 there"):
        extract(base, cut)
    broken = edited(base, tmp_path / "nan", lambda t: t[some_bias(t)].fill_(math.nan))
    with pytest.raises(CalibrationError, match="not finite"):
        extract(base, broken)
    stored(sd3(), tmp_path / "eight", torch.float8_e4m3fn)
    with pytest.raises(CalibrationError, match="before quantising"):
        extract(base, tmp_path / "eight")


def test_what_cannot_be_read_is_told_in_words(base, tmp_path):
    damaged = tmp_path / "damaged"
    shutil.copytree(base, damaged)
    path = damaged / "transformer" / NAME
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UnsupportedModelError, match="Cannot read the weights"):
        extract(base, damaged)
    path.unlink()
    with pytest.raises(UnsupportedModelError, match="no weights that diffusers would load"):
        extract(base, damaged)
    (tmp_path / "text.safetensors").write_text("no tensors")
    for missing in ("nowhere", "./no/where", tmp_path / "text.safetensors"):
        with pytest.raises(UnsupportedModelError):
            extract(base, missing)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(RunError, match="not an empty folder"):
        extract(base, "nowhere", output=tmp_path / "full")


def test_little_of_a_model_is_in_memory(tmp_path, monkeypatch):
    """Python's own and torch's: what ``read_rows`` holds is a fraction of the largest tensor."""
    from calibri.artifact import checkpoints
    from calibri.artifact import tuned as weights

    monkeypatch.setattr(checkpoints, "_AT_ONCE", 1000)
    seen = []

    def counted(*arguments):
        rows = read_rows(*arguments)
        seen.append(rows.numel())
        return rows

    read_rows = weights.read_rows
    monkeypatch.setattr(weights, "read_rows", counted)
    base = stored(sd3(), tmp_path / "base", torch.float32)
    tuned = fused(drawn(load_skeletons(str(base))), tmp_path / "fused", base)
    size = (base / "transformer" / NAME).stat().st_size
    tracemalloc.start()
    assert extract(base, tuned).is_scaling
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    rows = [t.numel() // len(t) for t in load_file(base / "transformer" / NAME).values()]
    assert max(seen) <= max(1000, *rows)
    assert peak < size / 4


def test_a_killed_extraction_leaves_nothing(base, tmp_path, monkeypatch):
    tuned = fused(drawn(load_skeletons(base)), tmp_path / "fused", base)

    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("calibri.artifact.tuned.read_rows", stop)
    with pytest.raises(KeyboardInterrupt):
        extract(base, tuned, output=tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_every_refusal_is_ours(base, tmp_path):
    (tmp_path / "empty").mkdir()
    for before, after in ((base, tmp_path / "empty"), (tmp_path / "empty", base)):
        with pytest.raises(CalibriError):
            extract(before, after)
