"""Weights of a model where they are stored: which files, which tensors, whose scale each takes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calibri.artifact.stored_fuse import stored_folder
from calibri.config import SHIPPED
from calibri.errors import UnsupportedModelError, first_line
from calibri.pipelines import (
    Network,
    StoredTensor,
    read_header,
    sites_of,
    stored_tensors,
    weight_files,
)
from calibri.sampling import fold_steps

OUTPUT_WEIGHT = "output"
"""What the output of the model is called among the names of sites."""

# Numbers that are looked at at a time: some tens of megabytes in double precision.
_AT_ONCE = 2**20
# What other tools put before the names of a transformer.
_PREFIXES = ("transformer.", "model.diffusion_model.", "diffusion_model.", "model.")


Tensors = Mapping[str, tuple[Path, StoredTensor]]


@dataclass(frozen=True)
class Piece:
    """Rows of a tensor that take one scale.

    Attributes:
        site: whose; empty when no scale reaches these rows.
        tensor: name in its transformer.
        rows: first, and last but one.
    """

    site: str
    tensor: str
    rows: tuple[int, int]

    def chunks(self, stored: StoredTensor) -> Iterator[tuple[int, int]]:
        """Cut the rows into ranges that fit into little memory."""
        first, last = self.rows
        numbers = max(1, (stored.end - stored.begin) // max(1, stored.rows))
        step = max(1, _AT_ONCE // numbers)
        for begin in range(first, last, step):
            yield begin, min(last, begin + step)


def find_checkpoint(name: str | Path, revision: str | None) -> Path:
    """Find a folder or a safetensors file, after a download where it must be.

    Raises:
        UnsupportedModelError: there is none.
    """
    path = Path(name)
    if path.is_dir() or path.is_file():
        return path
    is_repository = len(path.parts) == 2 and not path.is_absolute() and path.parts[0] != ".."
    found = None
    if name == SHIPPED or (is_repository and path.suffix != ".safetensors"):
        found = stored_folder(str(name), revision)
    if found is None:
        raise UnsupportedModelError(
            f"'{name}' is neither a folder or file here nor a pipeline that could be downloaded. "
            "Pass a diffusers folder, a .safetensors file, or a repository id such as user/name."
        )
    return found


def part_folder(path: Path, network: Network) -> Path:
    """Find the weights of a network in a pipeline; a transformer alone is its own folder."""
    return path / (network.name or "transformer") if is_pipeline(path) else path


def is_pipeline(path: Path) -> bool:
    """Say whether a folder has a whole pipeline, not a transformer alone."""
    return (path / "model_index.json").is_file()


def read_tensors(path: Path) -> Tensors:
    """List the tensors of a folder of weights, or of one file; their numbers stay where they are.

    Raises:
        UnsupportedModelError: there are none, or a file is damaged.
    """
    try:
        files = (path,) if path.is_file() else weight_files(path)
        found = {name: (file, tensor) for file, name, tensor in stored_tensors(files)}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UnsupportedModelError(
            f"Cannot read the weights of '{path}': {first_line(error)}. Check the folder, or "
            "download it again."
        ) from error
    if not found:
        raise UnsupportedModelError(
            f"'{path}' has no weights that diffusers would load as safetensors "
            "(diffusion_pytorch_model.safetensors, or its shards). Save it with "
            "save_pretrained(..., safe_serialization=True)."
        )
    return found


def without_prefix(tensors: Tensors, known: Tensors) -> Tensors:
    """Take away what other tools put before the names, where the rest are those of the model."""
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in tensors) and not tensors.keys() & known.keys():
            return {name.removeprefix(prefix): place for name, place in tensors.items()}
    return tensors


def names_of(path: Path) -> tuple[str, ...]:
    """List the tensors of one file.

    Raises:
        UnsupportedModelError: it is damaged, or no safetensors file.
    """
    try:
        return tuple(read_header(path))
    except (OSError, ValueError) as error:
        raise UnsupportedModelError(
            f"Cannot read '{path}': {first_line(error)}. It must be a .safetensors file."
        ) from error


def pieces_of(networks: Sequence[Network], parts: Sequence[Tensors]) -> list[list[Piece]]:
    """Cut the tensors of each network into rows that take one scale, and those that take none.

    Raises:
        UnsupportedModelError: a weight that takes a scale is not stored under its name.
    """
    # A scale that is not 1 names what it would multiply (spec section 1).
    scales = [2.0 if site.fold else 1.0 for site in sites_of(networks)]
    steps = fold_steps(networks, [*scales, 2.0])
    return [_pieces(*both) for both in zip(networks, steps, parts, strict=True)]


def _pieces(network: Network, steps: Sequence[Any], tensors: Tensors) -> list[Piece]:
    outputs = {site.name for site in network.outputs}
    owned: dict[str, list[Piece]] = defaultdict(list)
    for step in steps:
        if step.parameter not in tensors:
            raise UnsupportedModelError(
                f"'{step.parameter}', which takes the scale of '{step.site}', is not stored under "
                "its name. Load the model and save it again with save_pretrained."
            )
        name = network.path(step.site)
        rows = step.rows or (0, tensors[step.parameter][1].rows)
        site = OUTPUT_WEIGHT if name in outputs else name
        owned[step.parameter].append(Piece(site, step.parameter, rows))
    return [
        piece
        for name, (_, tensor) in tensors.items()
        for piece in _with_rest(name, tensor.rows, owned.get(name, []))
    ]


def _with_rest(name: str, rows: int, owned: Sequence[Piece]) -> Iterator[Piece]:
    """Go through the rows of a tensor in their order, with those between the pieces."""
    done = 0
    for piece in sorted(owned, key=lambda piece: piece.rows):
        if done < piece.rows[0]:
            yield Piece("", name, (done, piece.rows[0]))
        yield piece
        done = piece.rows[1]
    if done < rows or not owned:
        yield Piece("", name, (done, rows))
