"""The changes of a tuned model, tensor by tensor: of whole weights, or of an adapter."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from calibri.artifact.change import Change, change_by, change_of, total
from calibri.artifact.checkpoints import (
    Piece,
    Tensors,
    is_pipeline,
    names_of,
    part_folder,
    read_tensors,
    without_prefix,
)
from calibri.errors import CalibrationError
from calibri.pipelines import (
    LowRank,
    Network,
    StoredTensor,
    adapter_file,
    is_adapter,
    read_adapter,
    read_json,
    read_rows,
)


class Tuned(Protocol):
    """What a model became."""

    @property
    def is_adapter(self) -> bool:
        """Whether it is one, not whole weights."""
        ...

    def change(self, part: int, piece: Piece) -> Change:
        """Measure what became of a piece of the network ``part``."""
        ...


class TunedWeights:
    """Whole weights beside those of the base.

    Args:
        base: tensors of each network.
        tuned: the same.

    Raises:
        CalibrationError: it is another model.
    """

    is_adapter = False

    def __init__(self, base: Sequence[Tensors], tuned: Sequence[Tensors]) -> None:
        self._parts = list(zip(base, tuned, strict=True))
        for part in self._parts:
            _refuse_another_model(*part)

    def change(self, part: int, piece: Piece) -> Change:
        """Read the rows of both models, a few at a time."""
        (path, old), (other, new) = (tensors[piece.tensor] for tensors in self._parts[part])
        if old.dtype is None or new.dtype is None:
            return _of_packed(piece, (path, old), (other, new))
        found = total(
            _change(piece, read_rows(path, old, *rows), read_rows(other, new, *rows))
            for rows in piece.chunks(old)
        )
        return _finite(piece, found)

    @property
    def swapped(self) -> TunedWeights:
        """The same comparison the other way round."""
        return TunedWeights(*([part[i] for part in self._parts] for i in (1, 0)))

    def dtype(self) -> str:
        """Name the type of most of the tuned weights."""
        sizes: dict[str, int] = {}
        for _, tensor in (place for _, tuned in self._parts for place in tuned.values()):
            name = str(tensor.dtype or torch.float32).removeprefix("torch.")
            sizes[name] = sizes.get(name, 0) + tensor.end - tensor.begin
        return max(sizes, key=lambda name: sizes[name])


class TunedByAdapter:
    """Low-rank changes of the weights of the base.

    Args:
        base: tensors of the network.
        changes: name of each weight that changes to its change.
    """

    is_adapter = True

    def __init__(self, base: Tensors, changes: Mapping[str, LowRank]) -> None:
        self._base, self._changes = base, changes

    def change(self, part: int, piece: Piece) -> Change:
        """Multiply the adapter out, a few rows at a time."""
        path, stored = self._base[piece.tensor]
        low_rank = self._changes.get(piece.tensor) if part == 0 else None
        if stored.dtype is None and low_rank is None:
            return Change()
        if stored.dtype is None:
            raise _packed(piece.tensor)
        found = total(
            self._of_rows(read_rows(path, stored, *rows), low_rank, rows)
            for rows in (piece.chunks(stored) if piece.site or low_rank else ())
        )
        return _finite(piece, found)

    def _of_rows(self, before: Tensor, low_rank: LowRank | None, rows: tuple[int, int]) -> Change:
        if low_rank is None:
            return change_of(before, before)
        return change_by(before.double(), low_rank.rows(*rows))


def open_tuned(
    path: Path, folder: Path, networks: Sequence[Network], base: Sequence[Tensors]
) -> Tuned:
    """Open a tuned model: a pipeline, a transformer, a file of one, or an adapter.

    Args:
        path: folder or file.
        folder: of the base.
        networks: those of the base, on the meta device.
        base: tensors of each.

    Raises:
        UnsupportedModelError: it cannot be read.
        CalibrationError: it is for another model, or of another one.
    """
    adapter = None if is_pipeline(path) else adapter_file(path)
    if adapter is not None and is_adapter(names_of(adapter)):
        pipeline = str(read_json(folder / "model_index.json").get("_class_name", ""))
        shapes = {name: stored.shape for name, (_, stored) in base[0].items()}
        return TunedByAdapter(base[0], read_adapter(adapter, shapes, pipeline))
    if len(networks) > 1 and not is_pipeline(path):
        raise CalibrationError(
            f"BASE has {len(networks)} transformers, and '{path}' is one. Pass the folder of the "
            "whole pipeline."
        )
    for network in networks:
        _refuse_another_class(part_folder(folder, network), part_folder(path, network))
    tuned = [read_tensors(part_folder(path, network)) for network in networks]
    return TunedWeights(base, [without_prefix(*both) for both in zip(tuned, base, strict=True)])


def _refuse_another_class(own: Path, tuned: Path) -> None:
    # As the files name it: older ones name classes that have become others.
    names = [read_json(folder / "config.json").get("_class_name") for folder in (own, tuned)]
    if None not in names and names[0] != names[1]:
        raise CalibrationError(
            f"TUNED has a {names[1]} and BASE a {names[0]}: these are different models. Pass the "
            "model that was tuned as BASE."
        )


def _refuse_another_model(base: Tensors, tuned: Tensors) -> None:
    missing, unknown = sorted(base.keys() - tuned.keys()), sorted(tuned.keys() - base.keys())
    if missing or unknown:
        raise CalibrationError(
            "TUNED is not a scaled copy of BASE, its tensors have other names: "
            f"{len(missing)} of BASE are missing ({_few(missing)}), {len(unknown)} are new "
            f"({_few(unknown)}). Pass the model that was tuned as BASE, both as diffusers saves "
            "them."
        )
    for name, (_, stored) in base.items():
        if stored.shape != (other := tuned[name][1].shape):
            raise CalibrationError(
                f"TUNED is not a scaled copy of BASE: '{name}' has the shape {_shape(other)} "
                f"there and {_shape(stored.shape)} here. Pass the model that was tuned as BASE."
            )


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:2]) + (", ..." if len(names) > 2 else "") or "none"


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "a single number"


Place = tuple[Path, StoredTensor]


def _of_packed(piece: Piece, before: Place, after: Place) -> Change:
    """Compare bytes: what packs its values cannot be scaled in them, and may only stay."""
    if piece.site or not _same_bytes(before, after):
        raise _packed(piece.tensor)
    return Change()


def _same_bytes(before: Place, after: Place) -> bool:
    sizes = {stored.end - stored.begin for _, stored in (before, after)}
    if len(sizes) > 1 or before[1].dtype != after[1].dtype:
        return False
    with before[0].open("rb") as first, after[0].open("rb") as second:
        first.seek(before[1].begin)
        second.seek(after[1].begin)
        left = sizes.pop()
        while left:
            count = min(left, 2**20)
            if first.read(count) != second.read(count):
                return False
            left -= count
    return True


def _packed(tensor: str) -> CalibrationError:
    return CalibrationError(
        f"'{tensor}' is not stored in a plain floating-point type of 16 bits or more, so what "
        "became of it cannot be told. Pass both models as they were before quantising."
    )


def _change(piece: Piece, before: Tensor, after: Tensor) -> Change:
    # Most of a model: there is nothing to measure in what takes no scale and stayed.
    if not piece.site and before.dtype == after.dtype and torch.equal(before, after):
        return Change()
    return change_of(before, after)


def _finite(piece: Piece, found: Change) -> Change:
    if not math.isfinite(found.power + found.square):
        raise CalibrationError(
            f"'{piece.tensor}' has numbers that are not finite, in BASE or in TUNED. Download or "
            "save that model again."
        )
    return found
