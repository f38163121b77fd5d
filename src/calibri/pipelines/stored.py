"""The weights of a model as diffusers stores them: safetensors files, read one tensor at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from calibri.errors import UnsupportedModelError, first_line

_NAME = "diffusion_pytorch_model.safetensors"
_INDEX = f"{_NAME}.index.json"
# The plain floating-point types; what packs its values has another.
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor is in its file.

    Attributes:
        dtype: None when it is no plain floating-point type of more than eight bits.
        begin: first byte in the file.
        end: last byte but one.
    """

    dtype: torch.dtype | None
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def rows(self) -> int:
        """Numbers along the first axis; 1 when there are no axes."""
        return self.shape[0] if self.shape else 1


def read_json(path: Path) -> dict[str, Any]:
    """Read a small JSON file that may be missing.

    Raises:
        UnsupportedModelError: it is damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise UnsupportedModelError(f"Cannot read '{path}': {first_line(error)}.") from error
    return content if isinstance(content, dict) else {}


def weight_files(folder: Path) -> tuple[Path, ...]:
    """List the safetensors files that diffusers loads from a folder; none when it loads others.

    Raises:
        OSError: the list of the shards cannot be read.
        ValueError: it is damaged, or names a file outside of the folder.
    """
    if (folder / _NAME).is_file():
        return (folder / _NAME,)
    if not (folder / _INDEX).is_file():
        return ()
    shards = sorted(set(json.loads((folder / _INDEX).read_text())["weight_map"].values()))
    if any(Path(shard).name != shard for shard in shards):
        raise ValueError(f"{folder / _INDEX} names files outside of its folder")
    return tuple(folder / shard for shard in shards)


def is_other_index(path: Path) -> bool:
    """Say whether a file lists shards of other weights than those that diffusers loads."""
    if not path.name.endswith(".index.json"):
        return False
    return path.name != _INDEX or (path.parent / _NAME).is_file()


def read_header(path: Path) -> dict[str, StoredTensor]:
    """List the tensors of a safetensors file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no safetensors file.
    """
    try:
        with safe_open(path, framework="pt"):
            pass  # which checks every length and offset
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header: dict[str, Any] = json.loads(file.read(length))
    start = 8 + length
    return {
        name: StoredTensor(
            _DTYPES.get(entry["dtype"]),
            tuple(entry["shape"]),
            start + entry["data_offsets"][0],
            start + entry["data_offsets"][1],
        )
        for name, entry in header.items()
        if name != "__metadata__"
    }


def change_stored(path: Path, changes: Mapping[str, Callable[[Tensor], None]]) -> None:
    """Change tensors of a safetensors file in place, with one of them in memory at a time.

    Args:
        path: the file; what is not named, and its header, stay to the byte.
        changes: name of a tensor of a plain type to a function that changes what it is given.

    Raises:
        OSError: it cannot be read or written.
    """
    header = read_header(path)
    with path.open("r+b") as file:
        for name, change in changes.items():
            stored = header[name]
            assert stored.dtype is not None
            file.seek(stored.begin)
            data = bytearray(file.read(stored.end - stored.begin))
            change(torch.frombuffer(data, dtype=stored.dtype).view(stored.shape))
            file.seek(stored.begin)
            file.write(data)


def read_rows(path: Path, tensor: StoredTensor, first: int, last: int) -> Tensor:
    """Read some rows of a tensor and nothing else of its file.

    Args:
        path: the file.
        tensor: of a plain type; one without axes has a single row.
        first: row.
        last: last row but one.

    Returns:
        The rows in the stored dtype, (rows, numbers of each).

    Raises:
        OSError: the file cannot be read.
    """
    assert tensor.dtype is not None
    row = (tensor.end - tensor.begin) // max(1, tensor.rows)
    with path.open("rb") as file:
        file.seek(tensor.begin + first * row)
        data = bytearray(file.read((last - first) * row))
    if not data:
        return torch.empty((last - first, 0), dtype=tensor.dtype)
    return torch.frombuffer(data, dtype=tensor.dtype).view(last - first, -1)


def stored_tensors(files: tuple[Path, ...]) -> Iterator[tuple[Path, str, StoredTensor]]:
    """Go through the tensors of all files."""
    for path in files:
        for name, tensor in read_header(path).items():
            yield path, name, tensor
