"""What ComfyUI does with a LoRA file, restated: an oracle for the files that we write.

After ``comfy/lora.py``, ``comfy/weight_adapter/boft.py`` and ``comfy/model_patcher.py`` of 0.3.64.
``python -m integrations.comfyui.check`` runs the same against ComfyUI itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from calibri.artifact.formats.native_names import known_classes
from tests.pipelines.zoo import ZOO

KNOWN = [specimen for specimen in ZOO if specimen.model_class in known_classes()]
# One class serves Cosmos 1 and, by this, Cosmos 2.
(_COSMOS,) = [one for one in KNOWN if one.model_class == "CosmosTransformer3DModel"]
KNOWN.append(
    replace(_COSMOS, config=_COSMOS.config | {"extra_pos_embed_type": None}, variant="second")
)


class Boft(NamedTuple):
    blocks: Tensor
    rescale: Tensor
    alpha: float

    def difference(self, weight: Tensor, strength: float, dtype: torch.dtype) -> Tensor:
        blocks, rescale = self.blocks.to(dtype), self.rescale.to(dtype)
        rotations = blocks - blocks.transpose(-1, -2)
        if self.alpha > 0 and (size := torch.norm(rotations) + 1e-8) > self.alpha:
            rotations = rotations * self.alpha / size
        eye = torch.eye(blocks.shape[2], dtype=dtype)
        turned = ((eye + rotations) @ (eye - rotations).float().inverse()).to(weight)
        scaled = weight
        for turn in turned:
            turn = turn * strength + (1 - strength) * eye
            raise AssertionError(f"a calibration rotates nothing, and this does: {turn}")
        return (scaled * rescale - weight).to(dtype)


class LowRank(NamedTuple):
    up: Tensor
    down: Tensor

    def difference(self, weight: Tensor, strength: float, dtype: torch.dtype) -> Tensor:
        return (self.up.to(dtype) @ self.down.to(dtype)).reshape(weight.shape)


Patches = Sequence[tuple[float, Boft | LowRank]]


def read_patches(names: Sequence[str], tensors: Mapping[str, Tensor]) -> dict[str, Boft]:
    """Find the adapter of each tensor of a model, and refuse what is left over in the file."""
    found, used = {}, set()
    for name in names:
        key = name.removesuffix(".weight")
        parts = [f"{key}.{part}" for part in ("oft_blocks", "rescale", "alpha")]
        if parts[0] not in tensors:
            continue
        blocks, rescale, alpha = (tensors[part] for part in parts)
        assert blocks.ndim == 4  # three axes are OFT
        used.update(parts)
        found[name] = Boft(blocks, rescale, alpha.item())
    assert used == set(tensors), "lora key not loaded"
    return found


def calculate_weight(weight: Tensor, patches: Patches, dtype: torch.dtype) -> Tensor:
    """Apply patches in their order to a copy of a weight."""
    weight = weight.clone()
    for strength, patch in patches:
        change = strength * patch.difference(weight, strength, dtype)
        weight += change.type(weight.dtype)
    return weight


def load_fully(weight: Tensor, patches: Patches) -> Tensor:
    """A model that fits: patched in fp32 once, and rounded to what it is stored in."""
    return calculate_weight(weight.float(), patches, torch.float32).to(weight.dtype)


def load_partly(weight: Tensor, patches: Patches, compute: torch.dtype) -> Tensor:
    """A model that does not fit: patched in the type of computing whenever it is used."""
    return calculate_weight(weight.to(compute), patches, compute)
