"""Run our files and our node in ComfyUI itself, on tiny random models of its own classes.

    python -m integrations.comfyui.check PATH [FAMILY...]

PATH is a checkout of ComfyUI whose requirements are installed; it runs from Calibri's repository,
whose tests have the tiny models. It prints, for each family, how far tensors are from scale times
weight (relative maxima): patched in fp32 and rounded to where they are stored (ComfyUI rounds to 8
bits at random, to one of the two neighbours), patched in 16 bits, and by the node.
"""

from __future__ import annotations

import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers.models.clip  # noqa: F401  before the stand-in of torchvision below
from safetensors.torch import load_file
from torch import Tensor

from calibri.artifact.formats.comfyui import native_scales, write_lora
from calibri.coefficients.space import SearchSpace
from calibri.pipelines.sites.find import find_sites
from integrations.comfyui.calibration import read_calibration
from integrations.comfyui.nodes import LoadCalibration
from integrations.comfyui.places import find_places
from integrations.comfyui.scaling import MemberSum
from tests.artifact.formats.comfyui import KNOWN
from tests.pipelines.zoo.specimen import Specimen
from tests.tiny import calibration_of

_FLUX = dict(
    in_channels=4,
    out_channels=4,
    context_in_dim=16,
    hidden_size=16,
    mlp_ratio=4.0,
    num_heads=2,
    depth=2,
    depth_single_blocks=2,
    axes_dim=[2, 2, 4],
    theta=10000,
    patch_size=2,
    qkv_bias=True,
)
_HUNYUAN = _FLUX | dict(
    vec_in_dim=None, guidance_embed=False, patch_size=[1, 2, 2], byt5=False, meanflow=False
)
_WAN = dict(dim=24, ffn_dim=48, text_dim=16, num_heads=2, num_layers=2, in_dim=4, out_dim=4)
_SD3 = dict(
    input_size=None,
    in_channels=4,
    depth=3,
    pos_embed_max_size=8,
    adm_in_channels=12,
    context_size=16,
    context_embedder_config={
        "target": "torch.nn.Linear",
        "params": {"in_features": 16, "out_features": 192},
    },
    x_block_self_attn_layers=[0, 1],
    qk_norm="rms",
)
_COSMOS = dict(
    max_img_h=8,
    max_img_w=8,
    max_frames=4,
    in_channels=4,
    out_channels=4,
    patch_spatial=2,
    patch_temporal=1,
    model_channels=48,
    num_blocks=2,
    num_heads=2,
    crossattn_emb_channels=16,
    pos_emb_cls="rope3d",
)


def _specimen(identity: str) -> Specimen:
    """Find a tiny model of Calibri's tests."""
    (found,) = [one for one in KNOWN if one.id == identity]
    return found


# Specimen of Calibri's tests: ComfyUI's class of model, and the settings of a tiny one.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "FluxTransformer2DModel": ("Flux", _FLUX | dict(vec_in_dim=12, guidance_embed=True)),
    "ChromaTransformer2DModel": (
        "Chroma",
        _FLUX | dict(in_dim=64, out_dim=16, hidden_dim=16, n_layers=1),
    ),
    "HunyuanVideoTransformer3DModel": (
        "HunyuanVideo",
        _FLUX
        | dict(
            vec_in_dim=12, guidance_embed=True, patch_size=[1, 2, 2], byt5=False, meanflow=False
        ),
    ),
    "SD3Transformer2DModel-dual": ("SD3", _SD3),
    "QwenImageTransformer2DModel": (
        "QwenImage",
        dict(
            in_channels=4,
            out_channels=1,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=16,
            axes_dims_rope=(2, 2, 4),
        ),
    ),
    "HiDreamImageTransformer2DModel": (
        "HiDream",
        _specimen("HiDreamImageTransformer2DModel").config,
    ),
    "LTXVideoTransformer3DModel": (
        "LTXV",
        dict(
            in_channels=4,
            cross_attention_dim=16,
            attention_head_dim=8,
            num_attention_heads=2,
            caption_channels=16,
            num_layers=2,
        ),
    ),
    "WanTransformer3DModel": ("WAN21_T2V", _WAN | dict(model_type="t2v")),
    "WanTransformer3DModel-image": ("WAN21_I2V", _WAN | dict(model_type="i2v")),
    "WanVACETransformer3DModel": (
        "WAN21_Vace",
        _WAN | dict(model_type="vace", num_layers=3, vace_layers=2, vace_in_dim=8),
    ),
    "WanAnimateTransformer3DModel": ("WAN22_Animate", _WAN | dict(model_type="animate")),
    "Lumina2Transformer2DModel": (
        "Lumina2",
        dict(dim=16, n_layers=2, n_heads=2, cap_feat_dim=16, qk_norm=True, axes_dims=(4, 2, 2)),
    ),
    "CosmosTransformer3DModel": ("CosmosT2V", _COSMOS),
    "CosmosTransformer3DModel-second": (
        "CosmosT2IPredict2",
        _COSMOS | dict(image_model="cosmos_predict2"),
    ),
    "AuraFlowTransformer2DModel": (
        "AuraFlow",
        dict(dim=16, n_layers=4, n_double_layers=2, n_heads=2, cond_seq_dim=16, max_seq=64),
    ),
    "PixArtTransformer2DModel": ("PixArtAlpha", dict(hidden_size=16, depth=2, num_heads=2)),
    "HunyuanDiT2DModel": ("HunyuanDiT1", dict(hidden_size=32, depth=4, num_heads=2)),
    "HunyuanVideo15Transformer3DModel": ("HunyuanVideo", _HUNYUAN | dict(byt5=True)),
    "HunyuanImageTransformer2DModel": ("HunyuanImage21", _HUNYUAN | dict(patch_size=[1, 1])),
    "StableAudioDiTModel": ("StableAudio", dict(depth=2, embed_dim=48, num_heads=2)),
}
# Inputs of a forward, beside the latent and its timestep.
FORWARDS: dict[str, dict[str, tuple[int, ...]]] = {
    "FluxTransformer2DModel": {"c_crossattn": (5, 16), "y": (12,), "guidance": ()},
    "SD3Transformer2DModel-dual": {"c_crossattn": (5, 16), "y": (12,)},
}
STORED = (torch.float32, torch.bfloat16, torch.float8_e4m3fn)


class ComfyUI:
    """A checkout, imported."""

    def __init__(self, path: Path) -> None:
        if "torchvision" not in sys.modules:
            # It is imported by a class that resizes masks, and not called here.
            for name in ("torchvision", "torchvision.transforms"):
                sys.modules[name] = types.ModuleType(name)
            vars(sys.modules["torchvision"])["transforms"] = sys.modules["torchvision.transforms"]
        sys.path.insert(0, str(path))
        from comfy.cli_args import args

        args.cpu = True
        import comfy.float
        import comfy.lora
        import comfy.model_patcher
        import comfy.supported_models

        self.comfy = comfy

    def model(self, name: str, settings: dict[str, Any]) -> Any:
        """Build one of its models with random weights."""
        config = getattr(self.comfy.supported_models, name)(dict(settings))
        config.set_inference_dtype(torch.float32, None)
        model = config.get_model(self._beside(name), "")
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2 + 0.02)
        return model.eval()

    def _beside(self, name: str) -> dict[str, Tensor]:
        """Make what a model is built from beside its settings: Stable Audio embeds durations."""
        if name != "StableAudio":
            return {}
        from comfy.ldm.audio.embedders import NumberConditioner

        return {
            f"conditioner.conditioners.seconds_{end}.{key}": value
            for end in ("start", "total")
            for key, value in NumberConditioner(768).state_dict().items()
        }

    def read(self, model: Any, tensors: dict[str, Tensor]) -> dict[str, Any]:
        """Read a file with its LoRA loader, and refuse what it has no place for."""
        names = self.comfy.lora.model_lora_keys_unet(model, {})
        patches: dict[str, Any] = self.comfy.lora.load_lora(tensors, names)
        assert 3 * len(patches) == len(tensors), "lora key not loaded"
        return patches

    def patched(self, adapter: Any, weight: Tensor, strength: float, dtype: torch.dtype) -> Tensor:
        """Patch a weight in a type."""
        patches = [(strength, adapter, 1.0, None, None)]
        found: Tensor = self.comfy.lora.calculate_weight(
            patches, weight.to(dtype, copy=True), "weight", intermediate_dtype=dtype
        )
        return found

    def stored(self, value: Tensor, dtype: torch.dtype) -> Tensor:
        """Round a patched weight to the type it is stored in."""
        found: Tensor = self.comfy.float.stochastic_rounding(value, dtype, seed=1)
        return found

    def patcher(self, model: Any) -> Any:
        """Wrap a model as its loaders do."""
        cpu = torch.device("cpu")
        return self.comfy.model_patcher.ModelPatcher(model, cpu, cpu)


def apart(found: Tensor, expected: Tensor) -> float:
    """Relative maximum of a difference."""
    difference = (found.double() - expected.double()).abs().max()
    return float(difference / expected.double().abs().max())


def check_family(comfy: ComfyUI, identity: str, folder: Path) -> dict[str, float]:
    """Return the worst errors of a family, by what was done."""
    reference = _specimen(identity).model()
    space = SearchSpace.build(find_sites(reference), "gate")
    vector = space.start + np.random.default_rng(0).uniform(-0.6, 0.5, space.size)
    made = calibration_of(reference, space.coefficients(vector))
    made.save_pretrained(folder)
    write_lora(made, reference, folder / "file.safetensors")
    scales = native_scales(made.coefficients, reference)
    model = comfy.model(*FAMILIES[identity])
    patches = comfy.read(model, load_file(folder / "file.safetensors"))
    assert set(patches) == {f"diffusion_model.{name}" for name in scales}
    worst = _file_errors(comfy, model, patches, scales)
    worst["node"] = _node_error(comfy, model, scales, folder)
    if identity in FORWARDS:
        worst["node at forwards"] = _forward_error(comfy, model, folder, FORWARDS[identity])
    return worst


def _file_errors(
    comfy: ComfyUI, model: Any, patches: dict[str, Any], scales: dict[str, float]
) -> dict[str, float]:
    worst: dict[str, float] = {}
    state = model.state_dict()
    for name, scale in scales.items():
        key = f"diffusion_model.{name}"
        for dtype in STORED:
            weight = state[key].to(dtype)
            for strength in (0.5, 1.0):
                exact = (1 + strength * (scale - 1)) * weight.double()
                full = comfy.patched(patches[key], weight, strength, torch.float32)
                full = full if dtype == torch.float32 else comfy.stored(full, dtype)
                half = comfy.patched(patches[key], weight, strength, torch.bfloat16)
                errors = {f"{dtype} stored": apart(full, exact), "in 16 bits": apart(half, exact)}
                if dtype == torch.float32:
                    errors.pop("in 16 bits")  # which would round the weight itself
                worst |= {kind: max(worst.get(kind, 0.0), e) for kind, e in errors.items()}
    return worst


def _node_error(comfy: ComfyUI, model: Any, scales: dict[str, float], folder: Path) -> float:
    """Patch and unpatch a model by the node."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    patcher, _ = LoadCalibration().load(comfy.patcher(model), str(folder), 1.0)
    patcher.patch_model(torch.device("cpu"))
    after = {name: value.clone() for name, value in model.state_dict().items()}
    patcher.unpatch_model(torch.device("cpu"))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    factors = {f"diffusion_model.{name}": scale for name, scale in scales.items()}
    return max(
        apart(after[name], factors.get(name, 1.0) * before[name].double()) for name in before
    )


@torch.no_grad()
def _forward_error(
    comfy: ComfyUI, model: Any, folder: Path, shapes: dict[str, tuple[int, ...]]
) -> float:
    """Compare scales at every forward with scales in the weights."""
    generator = torch.Generator().manual_seed(2)
    inputs = {name: torch.randn(2, *shape, generator=generator) for name, shape in shapes.items()}
    latent = torch.randn(2, 4, 8, 8, generator=generator)

    def run(patcher: Any) -> Tensor:
        patcher.patch_model(torch.device("cpu"))
        sigma = torch.full((2,), 0.4)
        options = {"wrappers": patcher.wrappers, "cond_or_uncond": [0, 1], "sigmas": sigma[:1]}
        found: Tensor = model.apply_model(latent, sigma, transformer_options=options, **inputs)
        patcher.unpatch_model(torch.device("cpu"))
        return found

    expected = run(LoadCalibration().load(comfy.patcher(model), str(folder), 1.0)[0])
    calibration = read_calibration(str(folder), 1.0)
    network = model.diffusion_model
    places = find_places(
        calibration.transformer_class,
        calibration.granularity,
        calibration.members[0].scales[0],
        [name for name, _ in network.named_modules()],
    )
    at_forwards = comfy.patcher(model)
    at_forwards.add_wrapper_with_key("apply_model", "calibri", MemberSum(calibration, places))
    original = run(comfy.patcher(model))
    assert apart(original, expected) > 1e-3
    return apart(run(at_forwards), expected)


def main(path: str, *families: str) -> None:
    """Check families, all of them where none is named, and print a table."""
    comfy = ComfyUI(Path(path).resolve())
    for identity in families or FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            try:
                errors = check_family(comfy, identity, Path(folder))
            except AttributeError as error:
                print(f"{identity}: not in this ComfyUI ({error})")
                continue
        figures = ", ".join(f"{kind} {error:.1e}" for kind, error in errors.items())
        print(f"{identity}: {figures}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
