"""Options of rewards: plain values of a configuration to the arguments of a reward's class."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from calibri.errors import RewardError
from calibri.rewards.weights import Checkpoint
from calibri.signatures import check_types

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def arguments(name: str, factory: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Turn options into keyword arguments of a reward.

    Args:
        name: of the reward, for messages.
        factory: makes the reward.
        options: its arguments by name. A folder in the place of a checkpoint holds the files that
            would be fetched; ``revision`` is the branch, tag or commit of the repository of
            ``checkpoint``; ``dtype`` is a name.

    Raises:
        RewardError: the reward has no such option, or a value cannot be used.
    """
    known = _parameters(factory)
    names = known.keys() | ({"revision"} if _has_checkpoint(known) else set())
    if unknown := sorted(options.keys() - names):
        raise RewardError(
            f"Reward '{name}' has no option {', '.join(map(repr, unknown))}. Its options are "
            f"{', '.join(sorted(names)) or 'none'}."
        )
    found = {key: _value(name, key, value, known) for key, value in options.items()}
    for source in _sources(factory):
        check_types(f"Reward '{name}'", source, found, RewardError)
    if "revision" in found:
        base = found.get("checkpoint", known["checkpoint"])
        found["checkpoint"] = dataclasses.replace(base, revision=found.pop("revision"))
    return found


def _parameters(factory: Callable[..., Any]) -> dict[str, Any]:
    """Names and defaults of a factory's arguments, those that it passes on to its bases too."""
    defaults: dict[str, Any] = {}
    for source in _sources(factory):
        parameters = list(inspect.signature(source).parameters.values())
        for parameter in parameters:
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                defaults.setdefault(parameter.name, parameter.default)
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            break
    defaults.pop("self", None)
    return defaults


def _sources(factory: Callable[..., Any]) -> list[Callable[..., Any]]:
    """What says which arguments a factory takes: of a class, its and its bases' constructors."""
    bases = factory.__mro__ if inspect.isclass(factory) else ()
    return [vars(c)["__init__"] for c in bases if _has_own(c)] or [factory]


def _has_own(kind: type) -> bool:
    return kind is not object and "__init__" in vars(kind)


def _has_checkpoint(known: Mapping[str, Any]) -> bool:
    return isinstance(known.get("checkpoint"), Checkpoint)


def _value(name: str, key: str, value: Any, known: Mapping[str, Any]) -> Any:
    default = known.get(key)
    if isinstance(default, Checkpoint) and isinstance(value, str | Path):
        folder = Path(value).expanduser()
        if not folder.is_dir():
            raise RewardError(
                f"Option '{key}' of reward '{name}' must be a folder with the files of "
                f"'{default.repo_id}'; there is no folder '{value}'."
            )
        return dataclasses.replace(default, folder=folder)
    if key == "dtype" and isinstance(value, str):
        if value not in _DTYPES:
            raise RewardError(
                f"Option 'dtype' of reward '{name}' is '{value}'. Use {', '.join(_DTYPES)}."
            )
        return _DTYPES[value]
    return value
