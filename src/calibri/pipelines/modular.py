"""Pipelines that exist as blocks: how a folder says so, and how they are loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, ModularPipeline

from calibri.pipelines.dtype_name import DTYPE
from calibri.pipelines.names import place_of

PLAIN_INDEX, MODULAR_INDEX = "model_index.json", "modular_model_index.json"


def index_name(folder: Path) -> str:
    """Return the name of the file that lists the parts of a stored pipeline.

    Args:
        folder: of a pipeline; one that is both is a plain one.
    """
    modular = not (folder / PLAIN_INDEX).is_file() and (folder / MODULAR_INDEX).is_file()
    return MODULAR_INDEX if modular else PLAIN_INDEX


def read_index(name: str, revision: str | None = None) -> dict[str, Any]:
    """Read the list of the parts of a pipeline.

    Args:
        name: see ``place_of``.
        revision: branch, tag or commit of a repository.

    Returns:
        Part to [library, class], of a modular pipeline to [library, class, where it is].

    Raises:
        OSError: there is none.
        ValueError: it is damaged.
    """
    place = place_of(name)
    if (Path(place) / MODULAR_INDEX).is_file() and index_name(Path(place)) == MODULAR_INDEX:
        return dict(json.loads((Path(place) / MODULAR_INDEX).read_text(encoding="utf-8")))
    try:
        return dict(DiffusionPipeline.load_config(place, revision=revision))
    except OSError as error:
        if Path(place).is_dir():
            raise
        try:
            return dict(ModularPipeline.load_config(place, revision=revision))
        except OSError:
            raise error from None


def is_modular_index(index: dict[str, Any]) -> bool:
    """Say whether a list of parts is that of a modular pipeline."""
    return "_blocks_class_name" in index


def place_of_part(
    name: str, revision: str | None, part: str, index: dict[str, Any]
) -> tuple[str, str | None, str] | None:
    """Tell where a part of a pipeline is: pipeline or repository, its revision, and the folder.

    Args:
        name: of the pipeline.
        revision: of it.
        part: for example ``"transformer"``.
        index: of the pipeline, see ``read_index``.

    Returns:
        None where the pipeline has no such part.
    """
    entry = index.get(part) or (None,)
    if not is_modular_index(index):
        return None if entry[0] is None else (name, revision, part)
    told = entry[-1] if isinstance(entry[-1], dict) else {}
    elsewhere, folder = told.get("pretrained_model_name_or_path"), told.get("subfolder") or part
    if elsewhere is None:
        return None
    if (Path(place_of(name)) / folder / "config.json").is_file():
        return name, revision, folder
    return elsewhere, told.get("revision"), folder


def load_modular(place: str, revision: str | None, dtype: torch.dtype) -> Any:
    """Load a modular pipeline with all of its parts.

    Args:
        place: a folder or a repository; code in it is never run.
        revision: branch, tag or commit of a repository.
        dtype: of the weights.

    Raises:
        OSError: it is not there.
        ValueError: it cannot be loaded without its code, or a part cannot be loaded.
    """
    pipe = ModularPipeline.from_pretrained(place, revision=revision, trust_remote_code=False)
    pipe.load_components(**{DTYPE: dtype})
    listed = [name for name in pipe.null_component_names if _is_stored(pipe, name)]
    if listed:
        raise ValueError(f"its {listed[0]} cannot be loaded")
    return pipe


def _is_stored(pipe: Any, name: str) -> bool:
    return pipe.get_component_spec(name).pretrained_model_name_or_path is not None


def hide_progress(pipe: Any) -> None:
    """Switch progress bars off, in blocks of a modular pipeline at any depth."""
    pipe.set_progress_bar_config(disable=True)
    for block in getattr(getattr(pipe, "blocks", None), "sub_blocks", {}).values():
        _hide(block)


def _hide(block: Any) -> None:
    if hasattr(block, "set_progress_bar_config"):
        block.set_progress_bar_config(disable=True)
    for inner in getattr(block, "sub_blocks", {}).values():
        _hide(inner)
