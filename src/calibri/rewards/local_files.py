"""Rewards of a Python file that belongs to no package: ``./brightness.py:Brightness``.

Naming such a file runs it, so the name may come from the person alone, never from a calibration
(``calibri.rewards.stored_options``). Within a run the reward has a label without folders,
``brightness.py:Brightness``; where the file is stays among the options of the run.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from calibri.config import RewardConfig
from calibri.errors import RewardError
from calibri.rewards.mixing import constrained_name, split_mixture

_SPEC = re.compile(r"(?P<path>.+\.py):(?P<name>[A-Za-z_]\w*)")

Options = Mapping[str, Mapping[str, Any]]


def is_file_spec(text: str) -> bool:
    """Whether a name is that of a reward in a file, ``PATH.py:NAME``."""
    return _SPEC.fullmatch(text) is not None


def resolve_files(config: RewardConfig) -> RewardConfig:
    """Give every reward of a file its label, and its options the absolute path of the file.

    Workers and a resumed run so find the file whatever folder they start in, and no folder of this
    machine stands in results. A configuration that was resolved before stays as it is.

    Raises:
        RewardError: two files give the same label.
    """
    labels: dict[str, str] = {}
    options = {name: _with_absolute_file(values) for name, values in config.options.items()}
    for name in _names(config):
        if is_file_spec(name) and "reward" not in options.get(name, {}):
            label, spec = _label(name), _absolute(name)
            values = {**options.pop(name, {}), **options.pop(label, {})}
            if values.setdefault("reward", spec) != spec:
                raise RewardError(
                    f"'{values['reward']}' and '{spec}' would both be called '{label}'. Rename one "
                    "of the files, or one of the classes."
                )
            labels[name], options[label] = label, values
    if not labels and options == config.options:
        return config
    return config.model_copy(
        update={
            "objective": _renamed_mixture(config.objective, labels),
            "held_out": tuple(labels.get(name, name) for name in config.held_out),
            "constraints": tuple(_renamed_constraint(c, labels) for c in config.constraints),
            "options": options,
        }
    )


def load_from_file(spec: str) -> Any:
    """Run a file and return what it has under a name; a file is run once.

    Args:
        spec: ``PATH.py:NAME``.

    Raises:
        RewardError: the file is missing, fails, or has no such name.
    """
    path, name = _parts(spec)
    if not path.is_file():
        raise RewardError(f"There is no file '{path}' for the reward '{spec}'. Check the path.")
    module = _module(path.resolve())
    if not hasattr(module, name):
        defined = [
            key
            for key, value in vars(module).items()
            if callable(value) and getattr(value, "__module__", "") == module.__name__
        ]
        raise RewardError(
            f"'{path}' has no '{name}'. It defines {', '.join(defined) or 'no class or function'}."
        )
    return getattr(module, name)


def _module(path: Path) -> ModuleType:
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:16]
    name = f"calibri_local_reward_{digest}"
    if name in sys.modules:
        return sys.modules[name]
    found = importlib.util.spec_from_file_location(name, path)
    if found is None or found.loader is None:
        raise RewardError(f"'{path}' is no Python file. Check the path.")
    # Registered while it runs, as by an import: dataclasses look their module up.
    module = sys.modules[name] = importlib.util.module_from_spec(found)
    try:
        found.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, KeyboardInterrupt):
            raise
        raise RewardError(
            f"'{path}' cannot be run: {type(error).__name__}: {error}. Correct it; it is run by "
            "itself, and can import only what is installed."
        ) from error
    return module


def _parts(spec: str) -> tuple[Path, str]:
    match = _SPEC.fullmatch(spec)
    if match is None:
        raise RewardError(f"'{spec}' is not of the form PATH.py:NAME, e.g. ./mine.py:Brightness.")
    return Path(match["path"]).expanduser(), match["name"]


def _label(spec: str) -> str:
    path, name = _parts(spec)
    return f"{path.name}:{name}"


def _absolute(spec: str) -> str:
    path, name = _parts(spec)
    return f"{path.resolve()}:{name}"


def _with_absolute_file(options: Mapping[str, Any]) -> dict[str, Any]:
    source = options.get("reward")
    if isinstance(source, str) and is_file_spec(source):
        return {**options, "reward": _absolute(source)}
    return dict(options)


def _names(config: RewardConfig) -> Iterator[str]:
    yield from (name for name, _ in split_mixture(config.objective))
    yield from config.held_out
    yield from map(constrained_name, config.constraints)


def _renamed_mixture(spec: str, labels: Mapping[str, str]) -> str:
    parts = split_mixture(spec)
    if not any(name in labels for name, _ in parts):
        return spec
    return ",".join(f"{labels.get(name, name)}{'' if w is None else f':{w}'}" for name, w in parts)


def _renamed_constraint(text: str, labels: Mapping[str, str]) -> str:
    name = constrained_name(text)
    return text.replace(name, labels[name], 1) if name in labels else text
