"""Source pictures of instructions: found beside the file of prompts, and looked at at once."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps, UnidentifiedImageError

from calibri.errors import PromptError

IMAGE, DIGEST = "image", "image_sha256"
MAX_PICTURE_BYTES = 64 * 2**20


def with_picture(metadata: Mapping[str, Any], folder: Path, where: str) -> Mapping[str, Any]:
    """Resolve the source picture that a file names beside a prompt.

    Args:
        metadata: of the prompt; without ``"image"`` it is returned as it is.
        folder: that relative paths are relative to.
        where: file and line, for messages.

    Returns:
        With the whole path, and the SHA-256 of the file: another picture of the same name makes
        another prompt.

    Raises:
        PromptError: it is missing, cannot be read, or is no picture.
    """
    if IMAGE not in metadata:
        return metadata
    named = metadata[IMAGE]
    if not isinstance(named, str) or not named.strip():
        raise PromptError(
            f'{where}: "image" must be the path of a picture, relative to the file. Correct it.'
        )
    path = (folder / named).resolve()
    return {**metadata, IMAGE: str(path), DIGEST: _digest(path, where)}


def _digest(path: Path, where: str) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_PICTURE_BYTES + 1)
    except OSError as error:
        raise PromptError(
            f"{where}: cannot read the picture {path}: {error.strerror}. Paths are relative to the "
            "file of prompts."
        ) from error
    if len(data) > MAX_PICTURE_BYTES:
        raise PromptError(f"{where}: {path} is larger than {MAX_PICTURE_BYTES // 2**20} MB.")
    load_picture(path, where)
    return hashlib.sha256(data).hexdigest()


def load_picture(path: Path | str, where: str = "A prompt") -> Image.Image:
    """Read a picture: RGB, upright.

    Raises:
        PromptError: it cannot be read, or is no picture.
    """
    try:
        with Image.open(path) as opened:
            return ImageOps.exif_transpose(opened).convert("RGB")
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "no picture"
        raise PromptError(
            f"{where}: {path} is not a picture that can be read ({reason}). Give a PNG, JPEG or "
            "WebP file."
        ) from error
