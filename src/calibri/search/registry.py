"""Search methods by name. A new one is a file in ``search.methods`` and its name here."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from calibri.errors import ConfigError

if TYPE_CHECKING:
    from calibri.search.method import MethodInfo

METHODS = ("calibri", "reference", "gradient", "grpo", "random", "one_plus_one")


def method_info(name: str) -> MethodInfo:
    """Find a method; what it needs is imported only now.

    Raises:
        ConfigError: there is none of this name; the message lists those that there are.
    """
    if name not in METHODS:
        raise ConfigError(f"There is no search method '{name}'. There are {', '.join(METHODS)}.")
    info: MethodInfo = importlib.import_module(f"calibri.search.methods.{name}").INFO
    return info
