"""The version of this package, and those of what computes scores."""

from __future__ import annotations

import importlib.metadata

__version__ = "0.1.0"

_LIBRARIES = ("torch", "diffusers", "transformers", "numpy")


def versions_here() -> dict[str, str]:
    """Versions of what computes scores."""
    found = {name: importlib.metadata.version(name) for name in _LIBRARIES}
    return {"calibri": __version__, **found}
