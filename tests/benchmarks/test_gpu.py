"""No GPU here: the networks are tiny, and what is checked is that they are the right ones."""

import json

import pytest
import torch
from benchmarks.gpu_bench import Bench

from benchmarks import gpu, gpu_bench
from benchmarks import gpu_models as models
from calibri.sampling.scales.scaler import Scaler
from tests.needs import needs

CPU = {"device": "cpu", "dtype": torch.float32}


@pytest.mark.slow
@pytest.mark.parametrize(("geometry", "tflops"), [(models.FLUX, 21.50), (models.SD35, 2.44)])
def test_a_forward_takes_the_flops_of_the_published_model(geometry, tflops):
    assert geometry.flops() / 1e12 == pytest.approx(tflops, abs=0.01)


@pytest.mark.parametrize("geometry", [models.TINY_FLUX, models.TINY_SD35])
def test_plain_hooks_scale_what_ours_scale(geometry):
    model, inputs = geometry.make(**CPU), geometry.inputs(2, **CPU)
    original = gpu_bench.forward(model, inputs)
    hooks = models.PlainHooks(model)
    hooks.set([0.7] * len(hooks))
    plain = gpu_bench.forward(model, inputs)
    hooks.remove()
    scaler = Scaler(model)
    scales = torch.full((1, 1, len(scaler.sites) + 1), 0.7)
    scales[..., -1] = 1  # plain hooks leave the output alone
    scaler.set(scales)
    ours = gpu_bench.forward(model, inputs)
    assert len(hooks) == len(scaler.sites)
    assert torch.allclose(plain, ours, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(plain, original, rtol=1e-2)


def test_no_weight_is_left_at_zero_or_one():
    model = models.TINY_FLUX.make(**CPU)
    for parameter in model.parameters():
        assert parameter.unique().numel() > 0.9 * parameter.numel()


@needs(torch="2.7")  # before, a CPU does not multiply floats of eight bits
def test_eight_bits_come_near_the_exact_model():
    geometry = models.TINY_FLUX
    size = {"device": "cpu", "dtype": torch.bfloat16}
    model, inputs = geometry.make(**size), geometry.inputs(2, **size)
    exact = gpu_bench.forward(model, inputs).float()
    linears = [n for n, m in model.named_modules() if type(m) is torch.nn.Linear]
    assert models.quantise(model) == sum("blocks." in n and "norm" not in n for n in linears)
    error = (gpu_bench.forward(model, inputs).float() - exact).norm() / exact.norm()
    assert 1e-4 < error < 0.1


def test_what_fails_stops_nothing_else(capsys):
    ran = []

    def breaks(bench):
        """G1: breaks."""
        raise RuntimeError("no such kernel")

    def works(bench):
        """G2: works."""
        ran.append(bench)

    items = (("G1", breaks), ("G2", works))
    failed = gpu.run(Bench("cpu", True, 1), None, items)
    assert len(ran) == 1
    assert [row["item"] for row in failed] == ["G1"]
    assert "no such kernel" in capsys.readouterr().out
    assert gpu.run(Bench("cpu", True, 1), ["G2"], items) == []


@needs(torch="2.7")
@pytest.mark.end_to_end
def test_every_item_runs_on_tiny_networks(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu.machine, "quiet", lambda: None)
    gpu.main(f"--device cpu --tiny --repeats 1 --folder {tmp_path}".split())
    found = json.loads((tmp_path / "gpu-tiny.json").read_text())
    assert [row["reason"] for row in found["failed"]] == ["NotHereError: CUDA graphs need a GPU"]
    assert {row["item"] for row in found["rows"]} == {name for name, _ in gpu.ITEMS}
    counted = [row for row in found["rows"] if "recompiled" in row]
    assert len(counted) == 2
    assert all(row["recompiled"] == 0 and row["graphs"] > 0 for row in counted)


def test_without_a_gpu_only_tiny_networks_run(monkeypatch):
    monkeypatch.setattr(gpu, "run", lambda bench, only: pytest.fail("it would run for hours"))
    with pytest.raises(SystemExit):
        gpu.main(["--device", "cpu"])
