"""What some tests need of the environment, said in one way where they are skipped."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import diffusers
import pytest
import torch
from diffusers.hooks import apply_group_offloading
from packaging.version import Version


def is_older(library: str, least: str) -> bool:
    """Say whether an installed library is older than a version; its pre-releases are not."""
    return Version(version(library)) < Version(f"{least}.dev0")


def needs(**versions: str) -> pytest.MarkDecorator:
    """Mark a test that only some versions can pass: ``needs(diffusers="0.42")``."""
    older = [name for name, least in versions.items() if is_older(name, least)]
    said = ", ".join(f"{name} {versions[name]}, here is {version(name)}" for name in older)
    return pytest.mark.skipif(bool(older), reason=f"needs {said}")


def of_diffusers(name: str) -> Any:
    """Return a class of diffusers; skip the test where the installed one lacks it."""
    if not hasattr(diffusers, name):
        pytest.skip(f"diffusers {diffusers.__version__} has no {name}")
    return getattr(diffusers, name)


def group_offloading() -> Any:
    """Return how diffusers offloads groups of layers; skip the test where it cannot.

    Its older versions ask torch for an accelerator on a CPU, too, and torch 2.6 then fails.
    """
    if is_older("torch", "2.7") and not torch.accelerator.is_available():
        pytest.skip(f"torch {torch.__version__} offloads groups only beside an accelerator")
    return apply_group_offloading
