"""Scales beside LoRA, quantised weights, offloading and the compiler."""

import accelerate
import pytest
import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch._dynamo.testing import CompileCounter

from calibri.errors import FuseError
from calibri.sampling.scales.fold import Fused
from calibri.sampling.scales.scaler import Scaler
from tests.needs import group_offloading
from tests.tiny import flux_inputs, forward, has_hooks, tiny_flux

CPU = torch.device("cpu")
# Linears inside sites, linears that are sites themselves, and the model's output.
TARGETS = ["to_q", "to_out.0", "net.2", "proj_mlp", "proj_out"]


def random_scales(model_sites: int, rows: int = 1, seed: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(rows, 1, model_sites + 1, generator=generator) + 0.5


def scaled(model, seed=3):
    """Hook a model, scale it, and sample once."""
    scaler = Scaler(model)
    scaler.set(random_scales(len(scaler.sites), seed=seed))
    return forward(model, flux_inputs())


def add_adapter(model):
    model.add_adapter(LoraConfig(r=2, lora_alpha=4, target_modules=TARGETS))
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)


def merged():
    """Build the model with the adapter added to its weights: ordinary linears."""
    model, adapted = tiny_flux(), tiny_flux()
    add_adapter(adapted)
    with torch.no_grad():
        for name, module in adapted.named_modules():
            if isinstance(module, BaseTunerLayer):
                delta = module.get_delta_weight("default")
                model.get_submodule(name).weight.add_(delta)
    return model


def test_scales_on_a_model_with_lora_scale_the_merged_model():
    model = tiny_flux()
    add_adapter(model)
    torch.testing.assert_close(scaled(model), scaled(merged()), rtol=1e-4, atol=1e-4)


def test_lora_loaded_after_the_scales_and_unloaded_again_is_scaled_throughout():
    model = tiny_flux()
    plain = scaled(model)
    add_adapter(model)
    with_lora = forward(model, flux_inputs())
    torch.testing.assert_close(with_lora, scaled(merged()), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(with_lora, plain, atol=1e-2)
    model.unload_lora()
    assert torch.equal(forward(model, flux_inputs()), plain)


def test_removing_the_scales_under_lora_leaves_no_hook():
    model = tiny_flux()
    scaler = Scaler(model)
    scaler.set(random_scales(len(scaler.sites)))
    add_adapter(model)
    forward(model, flux_inputs())
    scaler.remove()
    assert not has_hooks(model)


def test_fusing_under_lora_is_refused_and_names_the_way():
    model = tiny_flux()
    add_adapter(model)
    with pytest.raises(FuseError, match=r"peft.*fuse_lora"):
        Fused(model, [0.5] * (len(Scaler(model).sites) + 1))


class PackedTensor(torch.Tensor):
    """Stands for a quantised weight: a tensor class of its own."""


def test_fusing_packed_weights_is_refused_and_names_the_way():
    model = tiny_flux()
    weight = model.proj_out.weight.data.as_subclass(PackedTensor)
    model.proj_out.weight = torch.nn.Parameter(weight, requires_grad=False)
    with pytest.raises(FuseError, match=r"PackedTensor.*before quantising"):
        Fused(model, [1.0] * len(Scaler(model).sites) + [0.5])


def test_fusing_weights_stored_in_eight_bits_is_refused_and_hooks_stay_right():
    model = tiny_flux()
    model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    with pytest.raises(FuseError, match=r"float8.*without fusing"):
        Fused(model, [0.5] * (len(Scaler(model).sites) + 1))
    rounded = tiny_flux()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            rounded.get_parameter(name).copy_(parameter)
    torch.testing.assert_close(scaled(model), scaled(rounded), rtol=1e-4, atol=1e-4)


def offload_model(model):
    accelerate.cpu_offload_with_hook(model, execution_device=CPU)


def offload_sequentially(model):
    accelerate.cpu_offload(model, execution_device=CPU)


def offload_leaves(model):
    group_offloading()(model, CPU, CPU, offload_type="leaf_level")


def offload_blocks(model):
    group_offloading()(model, CPU, CPU, offload_type="block_level", num_blocks_per_group=1)


every_offload = pytest.mark.parametrize(
    "offload", [offload_model, offload_sequentially, offload_leaves, offload_blocks]
)


@every_offload
@pytest.mark.parametrize("hooks_first", [True, False])
def test_scales_survive_offloading(offload, hooks_first):
    model = tiny_flux()
    scaler = Scaler(model) if hooks_first else None
    offload(model)
    scaler = scaler or Scaler(model)
    for seed in (1, 2):
        scaler.set(random_scales(len(scaler.sites), seed=seed))
        ours = forward(model, flux_inputs())
        assert torch.equal(ours, scaled(tiny_flux(), seed))


@pytest.mark.parametrize("offload", [offload_sequentially, offload_leaves, offload_blocks])
def test_fusing_an_offloaded_model_is_refused_and_names_the_way(offload):
    model = tiny_flux()
    offload(model)
    with pytest.raises(FuseError, match=r"[Ff]use before .*offload"):
        Fused(model, [0.5] * (len(Scaler(model).sites) + 1))


@pytest.fixture
def counter():
    torch._dynamo.reset()
    yield CompileCounter()
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["compile", "compile_repeated_blocks"])
def test_changing_scales_compiles_nothing_again(how, counter):
    model = tiny_flux()
    scaler = Scaler(model)
    getattr(model, how)(backend=counter, fullgraph=True)
    compiled = []
    for seed in range(4):
        scaler.set(random_scales(len(scaler.sites), seed=seed))
        ours = forward(model, flux_inputs())
        compiled.append(counter.frame_count)
        torch.testing.assert_close(ours, scaled(tiny_flux(), seed), rtol=1e-5, atol=1e-5)
    assert compiled[0] > 0
    assert set(compiled) == {compiled[0]}


@pytest.mark.slow
def test_hooks_add_no_graph_to_compiled_blocks(counter):
    plain, hooked = tiny_flux(), tiny_flux()
    plain.compile_repeated_blocks(backend=counter, fullgraph=True)
    forward(plain, flux_inputs())
    without = counter.frame_count
    torch._dynamo.reset()
    counter.clear()
    Scaler(hooked)
    hooked.compile_repeated_blocks(backend=counter, fullgraph=True)
    forward(hooked, flux_inputs())
    assert counter.frame_count == without > 0
