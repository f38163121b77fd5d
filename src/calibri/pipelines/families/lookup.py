"""Find what is known of a class of transformer or of a block."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from functools import cache

from torch import nn

import calibri.pipelines.families as package
from calibri.pipelines.families.family import Family
from calibri.pipelines.geometries import Geometry


@cache
def families() -> tuple[Family, ...]:
    """List every family: the ``FAMILIES`` of each module beside this one."""
    names = sorted(info.name for info in pkgutil.iter_modules(package.__path__))
    modules = [importlib.import_module(f"{package.__name__}.{name}") for name in names]
    return tuple(row for module in modules for row in getattr(module, "FAMILIES", ()))


def family_of(transformer: nn.Module | str) -> Family:
    """Return what is known of a class of transformer.

    Args:
        transformer: a model, or the name of its class.

    Returns:
        Its family; a row that knows nothing for a class without one.
    """
    name = transformer if isinstance(transformer, str) else type(transformer).__name__
    return _by_class().get(name) or Family((name,))


def block_family(name: str) -> Family | None:
    """Return the family that knows a class of block; None where none does."""
    return _by_block().get(name)


@cache
def auxiliary_containers() -> frozenset[str]:
    """Name the containers beside the trunk of any family."""
    return frozenset().union(*(row.auxiliary for row in families()))


def classes_where(known: Callable[[Family], object]) -> tuple[str, ...]:
    """List the classes of transformer of the families for which something holds."""
    return tuple(name for row in families() if known(row) for name in row.classes)


@cache
def published_geometries() -> Mapping[str, Geometry]:
    """Shapes of published pipelines by lower-case name of the repository, without its owner."""
    return {name: shape for row in families() for name, shape in row.published.items()}


@cache
def _by_class() -> dict[str, Family]:
    return {name: row for row in families() for name in row.classes}


@cache
def _by_block() -> dict[str, Family]:
    return {name: row for row in families() for name in row.blocks}
