"""The transformer classes that the installed diffusers ships."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from functools import cache

from diffusers.models import transformers
from diffusers.models.modeling_utils import ModelMixin
from torch import nn


@cache
def transformer_classes() -> dict[str, type[nn.Module]]:
    """List every model class of ``diffusers.models.transformers`` by its name.

    The list comes from diffusers itself, so that a class of a newer version shows up by name.
    """
    modules = sorted(info.name for info in pkgutil.iter_modules(transformers.__path__))
    return {
        name: member
        for module in modules
        for name, member in _members(f"{transformers.__name__}.{module}")
    }


def _members(module: str) -> list[tuple[str, type[nn.Module]]]:
    members = inspect.getmembers(importlib.import_module(module), inspect.isclass)
    own = [(name, member) for name, member in members if member.__module__ == module]
    # ModelMixin alone is untyped to a type checker; every one of them is a torch module.
    return [(n, m) for n, m in own if issubclass(m, ModelMixin) and issubclass(m, nn.Module)]
