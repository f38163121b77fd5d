"""Where a pipeline is, by its name; what can be neither a folder nor a repository is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from calibri.config import SHIPPED
from calibri.errors import UnsupportedModelError
from calibri.shapes import PIPELINE_PATH

# As the Hugging Face hub has them (huggingface_hub.utils.validate_repo_id).
_REPOSITORY = re.compile(r"\w[\w.-]{0,95}/\w[\w.-]{0,95}", re.ASCII)


def place_of(name: str) -> str:
    """Resolve the name of a pipeline to a folder or a repository id, without asking the network.

    Args:
        name: ``"shapes"``, a folder, or a Hugging Face repository id.

    Raises:
        UnsupportedModelError: it is a file, or neither a folder here nor the name of a repository.
    """
    if name == SHIPPED:
        return str(PIPELINE_PATH)
    if _is(Path.is_dir, name):
        return name
    if _is(Path.is_file, name):
        reason = "it is a file, not the folder of a pipeline"
    elif not can_be_repository(name):
        reason = "there is no such folder here, and a repository is called user/name"
    else:
        return name
    raise UnsupportedModelError(
        f"Cannot load a pipeline from '{name}': {reason}. Pass a folder with model_index.json, a "
        f"repository id, or '{SHIPPED}'."
    )


def can_be_repository(name: str) -> bool:
    """Whether the Hugging Face hub could have a repository of that name."""
    return _REPOSITORY.fullmatch(name) is not None


def _is(kind: Callable[[Path], bool], name: str) -> bool:
    try:
        return kind(Path(name))
    except (OSError, ValueError):  # no file can be called so
        return False
