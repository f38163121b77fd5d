"""Fold scales into a stored pipeline, file by file: in its own dtypes, shards and little memory."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from diffusers import DiffusionPipeline
from torch import Tensor

from calibri.artifact.apply import check_class, scales_to_fold
from calibri.artifact.calibration import Calibration
from calibri.artifact.survival import Kept, kept_of
from calibri.config import SHIPPED
from calibri.errors import FuseError
from calibri.pipelines import (
    PLAIN_INDEX,
    Network,
    StoredTensor,
    change_stored,
    index_name,
    is_other_index,
    load_skeletons,
    stored_tensors,
    weight_files,
)
from calibri.sampling import FoldStep, fold_steps
from calibri.shapes import PIPELINE_PATH

_WEIGHTS = (".safetensors", ".bin", ".ckpt", ".pt", ".pth", ".gguf", ".msgpack", ".h5", ".onnx")


def stored_folder(name: str, revision: str | None) -> Path | None:
    """Find where a pipeline is stored here, after a download where it must be.

    Returns:
        None when there is none of that name.
    """
    if name == SHIPPED:
        return Path(PIPELINE_PATH)
    if Path(name).is_dir():
        return Path(name)
    try:
        return Path(DiffusionPipeline.download(name, revision=revision))
    except (OSError, ValueError, KeyError, AttributeError):  # ``load_pipeline`` says why
        return None


@dataclass(frozen=True)
class _Part:
    """A transformer of a stored pipeline, and what is done to its tensors.

    Attributes:
        folder: name of its folder.
        tensors: name to its file and place.
        steps: name of a tensor to what multiplies it.
    """

    folder: str
    tensors: Mapping[str, tuple[Path, StoredTensor]]
    steps: Mapping[str, Sequence[FoldStep]]


class StoredPipeline:
    """A folder whose transformers can be changed where they are stored.

    Args:
        folder: of a diffusers pipeline.
        calibration: for its transformers, at the strength that is wanted.

    Raises:
        FuseError: the calibration cannot be folded, or weights are quantised.
        CalibrationError: it is for another model.
        UnsupportedModelError: the folder is no pipeline whose sites are known.
        OSError: it cannot be read.
        ValueError: a file of weights is damaged.
    """

    def __init__(self, folder: Path, calibration: Calibration) -> None:
        self.folder = folder
        networks = load_skeletons(str(folder))
        check_class(calibration, networks)
        scales = scales_to_fold(calibration.coefficients, networks)
        steps = fold_steps(networks, scales)
        self._parts = [_part(folder, *both) for both in zip(networks, steps, strict=True)]

    @property
    def is_complete(self) -> bool:
        """Whether every weight that changes is in a safetensors file, under its own name."""
        return all(part.steps.keys() <= part.tensors.keys() for part in self._parts)

    def write(self, target: Path) -> list[Kept]:
        """Write the pipeline with the scales in its weights.

        Args:
            target: a new or empty folder.

        Returns:
            What is left of each scale.

        Raises:
            OSError: something cannot be written.
        """
        for part in self._parts:
            _refuse_packed(part)
        target.mkdir(parents=True, exist_ok=True)
        name_of_index = index_name(self.folder)
        index = json.loads((self.folder / name_of_index).read_text())
        own = {part.folder for part in self._parts}
        for name, entry in index.items():
            if _is_part(entry) and name not in own and self._is_here(name, name_of_index):
                shutil.copytree(self.folder / name, target / name)
        kept = [record for part in self._parts for record in self._write_part(part, target)]
        for path in self.folder.iterdir():
            if path.is_file() and path.suffix not in _WEIGHTS and path.name != name_of_index:
                shutil.copyfile(path, target / path.name)
        # Last, so that no folder that was left half-written can be loaded.
        shutil.copyfile(self.folder / name_of_index, target / name_of_index)
        return kept

    def _is_here(self, name: str, index: str) -> bool:
        # The list of a modular pipeline may name parts of other repositories.
        return index == PLAIN_INDEX or (self.folder / name).is_dir()

    def _write_part(self, part: _Part, target: Path) -> list[Kept]:
        (target / part.folder).mkdir()
        for path in (self.folder / part.folder).iterdir():
            # Weights in other formats or variants would be loaded without the scales. The list of
            # shards stays, since they do; that of a single file would be taken for one of shards.
            if path.is_file() and path.suffix not in _WEIGHTS and not is_other_index(path):
                shutil.copyfile(path, target / part.folder / path.name)
        kept: list[Kept] = []
        shards = weight_files(self.folder / part.folder)
        for shard in shards:
            copied = target / part.folder / shard.name
            shutil.copyfile(shard, copied)
            here = {name for name, (path, _) in part.tensors.items() if path == shard}
            changes = {
                name: partial(_multiply, steps=steps, kept=kept)
                for name, steps in part.steps.items()
                if name in here
            }
            change_stored(copied, changes)
        return kept


def _is_part(entry: object) -> bool:
    return isinstance(entry, list) and bool(entry) and entry[0] is not None


def _part(folder: Path, network: Network, steps: Sequence[FoldStep]) -> _Part:
    name = network.name or "transformer"
    files = weight_files(folder / name)
    tensors = {tensor: (path, stored) for path, tensor, stored in stored_tensors(files)}
    by_tensor: dict[str, list[FoldStep]] = defaultdict(list)
    for step in steps:
        by_tensor[step.parameter].append(step)
    return _Part(name, tensors, by_tensor)


def _refuse_packed(part: _Part) -> None:
    # 8-bit floats would round the scale away; integers pack what a library takes apart.
    for name in part.steps:
        if part.tensors[name][1].dtype is None:
            raise FuseError(
                f"Cannot fold a scale into '{name}': it is not stored in a plain floating-point "
                "type of 16 bits or more. Fuse before quantising, or keep the calibration loaded."
            )


def _multiply(weight: Tensor, steps: Sequence[FoldStep], kept: list[Kept]) -> None:
    for step in steps:
        before = step.part(weight).clone()
        step.multiply(weight)
        kept.append(kept_of(step, before, step.part(weight)))
