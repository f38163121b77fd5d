"""Low-rank adapters of other tools: which weights of a transformer they change, and by how much."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from calibri.errors import CalibrationError, UnsupportedModelError, first_line
from calibri.pipelines.stored import read_json

# lora_A, lora_B of PEFT and diffusers, lora_down, lora_up of kohya's scripts; alpha of both.
_MATRIX = re.compile(
    r"(?P<path>.+?)\.(?:lora_(?P<kind>A|B|down|up)|lora\.(?P<older>down|up))(?:\.\w+)?\.weight"
)
_DOWN = ("A", "down")
# What tools put before the path of a layer of the transformer.
_PREFIXES = (
    "base_model.model.",
    "transformer.",
    "diffusion_model.",
    "lora_transformer_",
    "lora_unet_",
)
_TEXT_ENCODERS = ("text_encoder", "lora_te", "te_", "conditioner.")
_SETTINGS = "lora_adapter_metadata"
# What diffusers and PEFT call the file of an adapter.
ADAPTER_FILES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")


@dataclass(frozen=True)
class LowRank:
    """The change of one weight.

    Attributes:
        up: (rows, rank).
        down: (rank, numbers of a row).
        factor: of their product.
    """

    up: Tensor
    down: Tensor
    factor: float

    def rows(self, first: int, last: int) -> Tensor:
        """Multiply out some rows, in double precision."""
        product: Tensor = self.up[first:last].double() @ self.down.double()
        return product * self.factor


def is_adapter(names: Collection[str]) -> bool:
    """Say whether tensors of these names are an adapter, and not weights of a model."""
    words = ("lora_", ".lora.", "lokr_", "hada_", "lora_magnitude", "dora_scale")
    return any(word in name for name in names for word in words)


def for_text_encoders(names: Collection[str]) -> list[str]:
    """List the tensors of an adapter that are for text encoders."""
    return sorted(name for name in names if name.startswith(_TEXT_ENCODERS))


def adapter_file(path: Path) -> Path | None:
    """Find the adapter in a folder of one, or take the file; None when there is none."""
    if path.is_file():
        return path
    for name in ADAPTER_FILES:
        if (path / name).is_file():
            return path / name
    return None


def read_adapter(
    path: Path, weights: Mapping[str, tuple[int, ...]], pipeline: str
) -> dict[str, LowRank]:
    """Read an adapter as changes of the weights of a transformer.

    Parts for text encoders are left out.

    Args:
        path: safetensors file.
        weights: name to shape of those of the transformer, as diffusers names them.
        pipeline: class of diffusers that knows other names for them; empty for none.

    Returns:
        Name of each weight that changes to its change.

    Raises:
        UnsupportedModelError: it cannot be read.
        CalibrationError: it is for another model, or holds more than low-rank matrices.
    """
    tensors, settings = _read(path)
    tensors = {n: t for n, t in tensors.items() if not n.startswith(_TEXT_ENCODERS)}
    _refuse_others(path, tensors)
    paths = _paths(weights)
    if not all(_layer(name, paths) for name in tensors):
        tensors = _renamed(path, tensors, pipeline)
    unknown = [name for name in tensors if not _layer(name, paths)]
    if unknown or not tensors:
        raise CalibrationError(
            f"'{path}' is an adapter for another model: this one has no layer for "
            f"{', '.join(unknown[:3]) or 'any part of it'}. Pass the pipeline it was trained on."
        )
    return _joined(path, tensors, settings, paths, weights)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        settings = json.loads(metadata.get(_SETTINGS, "{}"))
    except (SafetensorError, OSError, ValueError) as error:
        raise UnsupportedModelError(
            f"Cannot read '{path}': {first_line(error)}. Download it again."
        ) from error
    settings = {name.removeprefix("transformer."): value for name, value in settings.items()}
    return tensors, settings or read_json(path.parent / "adapter_config.json")


def _refuse_others(path: Path, tensors: Collection[str]) -> None:
    others = [n for n in tensors if not _MATRIX.fullmatch(n) and not n.endswith(".alpha")]
    if others:
        raise CalibrationError(
            f"'{path}' holds more than low-rank matrices ({', '.join(sorted(others)[:3])}): "
            "DoRA, LoHa, LoKr and whole differences are not read. Fuse the adapter into the model "
            "with diffusers (pipe.fuse_lora(), pipe.unload_lora_weights()), save it with "
            "save_pretrained, and pass that folder."
        )


def _paths(weights: Collection[str]) -> dict[str, str]:
    """Name every layer as PEFT and diffusers do, and as kohya's scripts do."""
    layers = [name.removesuffix(".weight") for name in weights if name.endswith(".weight")]
    return {spelt: layer for layer in layers for spelt in (layer, layer.replace(".", "_"))}


def _layer(name: str, paths: Mapping[str, str]) -> str:
    found = _MATRIX.fullmatch(name)
    path = found["path"] if found else name.removesuffix(".alpha")
    while True:
        if path in paths:
            return paths[path]
        prefix = next((prefix for prefix in _PREFIXES if path.startswith(prefix)), None)
        if prefix is None:
            return ""
        path = path.removeprefix(prefix)


def _renamed(path: Path, tensors: dict[str, Tensor], pipeline: str) -> dict[str, Tensor]:
    """Let diffusers translate the names of other code, where it can."""
    kind: Any = getattr(diffusers, pipeline, None)
    if not hasattr(kind, "lora_state_dict"):
        return tensors
    try:
        # Handed over as tensors: no file is opened there.
        return dict(kind.lora_state_dict(dict(tensors)))
    except (ValueError, KeyError, TypeError, RuntimeError, AttributeError, IndexError) as error:
        raise CalibrationError(
            f"diffusers does not know the names in '{path}': {first_line(error)}. Pass the "
            "pipeline that the adapter was trained on."
        ) from error


def _joined(
    path: Path,
    tensors: Mapping[str, Tensor],
    settings: Mapping[str, Any],
    paths: Mapping[str, str],
    weights: Mapping[str, tuple[int, ...]],
) -> dict[str, LowRank]:
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        found = _MATRIX.fullmatch(name)
        kind = (found["kind"] or found["older"]) if found else "alpha"
        side = "down" if kind in _DOWN else kind if kind == "alpha" else "up"
        parts.setdefault(_layer(name, paths), {})[side] = tensor
    return {
        f"{layer}.weight": _low_rank(path, layer, part, settings, weights[f"{layer}.weight"])
        for layer, part in parts.items()
    }


def _low_rank(
    path: Path,
    layer: str,
    part: Mapping[str, Tensor],
    settings: Mapping[str, Any],
    shape: tuple[int, ...],
) -> LowRank:
    fits = {"up", "down"} <= part.keys() and all(t.is_floating_point() for t in part.values())
    up, down = (part[side].flatten(1) if fits else torch.empty(0, 0) for side in ("up", "down"))
    numbers = math.prod(shape[1:])
    if not fits or (up.shape[0], down.shape[1]) != (shape[0], numbers) or up.shape[1] != len(down):
        raise CalibrationError(
            f"'{path}' does not fit '{layer}', which is {' x '.join(map(str, shape))}: a matrix is "
            "missing or has another shape. Pass the pipeline it was trained on."
        )
    alpha = float(part["alpha"]) if "alpha" in part else _alpha(layer, settings, len(down))
    root = bool(settings.get("use_rslora"))
    return LowRank(up, down, alpha / (math.sqrt(len(down)) if root else len(down)))


def _alpha(layer: str, settings: Mapping[str, Any], rank: int) -> float:
    """PEFT's rule: a pattern for some layers, a number for the others; else a factor of 1."""
    for pattern, value in (settings.get("alpha_pattern") or {}).items():
        if layer == pattern or layer.endswith(f".{pattern}"):
            return float(value)
    return float(settings.get("lora_alpha") or rank)
