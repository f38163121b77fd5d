"""From what a caller gives to the configuration of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from calibri.config import SHIPPED, RunConfig, load_config, validate_config
from calibri.errors import ConfigError, suggestion

# What a call that takes a configuration accepts as one.
ConfigLike = RunConfig | Mapping[str, Any] | Path


def merge_config(
    config: ConfigLike | None,
    values: Mapping[str, Any] | None = None,
    arguments: Sequence[str] = (),
) -> RunConfig:
    """Put values over a configuration, as flags are put over a file.

    Args:
        config: a configuration, a mapping like it, the path of a YAML file, or None for the
            defaults.
        values: keys of ``RunConfig``, which win. A mapping for a section changes the keys it has;
            a section object, such as a ``SearchConfig``, replaces the section.
        arguments: what else the call takes, for the message about a misspelt keyword.

    Raises:
        ConfigError: a name or value is wrong, or ``config`` is something else.
    """
    values = values or {}
    for name in values:
        if name not in RunConfig.model_fields:
            known = (*arguments, *RunConfig.model_fields)
            raise ConfigError(f"There is no argument '{name}'. {suggestion(name, known)}")
    base = _read(config)
    if not values:
        return base
    data = {name: getattr(base, name) for name in base.model_fields_set}
    for name, value in values.items():
        data[name] = _put_over(base, name, value)
    return validate_config(data)


def _read(config: ConfigLike | None) -> RunConfig:
    if isinstance(config, RunConfig):
        return config
    if isinstance(config, Path):
        return load_config(config)
    if config is None or isinstance(config, Mapping):
        return validate_config(config or {})
    raise ConfigError(
        f"A configuration is a RunConfig, a mapping, or a pathlib.Path of a YAML file, not "
        f"{config!r}. Name a pipeline by the keyword: pipeline={str(config)!r}."
    )


def _put_over(base: RunConfig, name: str, value: Any) -> Any:
    section = getattr(base, name)
    if not (isinstance(section, BaseModel) and isinstance(value, Mapping)):
        return value
    given = {key: getattr(section, key) for key in section.model_fields_set}
    if name == "search":
        _check_method(given, value)
    return {**given, **value}


def _check_method(given: Mapping[str, Any], value: Mapping[str, Any]) -> None:
    # A method has defaults of its own: what was given and what it filled in look alike.
    before = given.get("method")
    if before is not None and value.get("method", before) != before:
        raise ConfigError(
            f"The method '{value['method']}' is given beside a configuration whose method is "
            f"'{before}'. Make the configuration with the one that you want."
        )


def with_own_material(config: RunConfig) -> RunConfig:
    """Refuse what only the shipped pipeline may leave out, and choose who watches.

    The default prompts, objective and held-out reward know the small world of the shipped pipeline
    only. Elsewhere prompts and an objective must be given, and nobody watches who was not named.

    Raises:
        ConfigError: another pipeline comes without prompts or reward.
    """
    if config.pipeline != SHIPPED:
        _check_own_material(config)
    if "held_out" in config.rewards.model_fields_set:
        return config
    watchers = config.rewards.held_out if config.pipeline == SHIPPED else ()
    # The default watcher need not watch itself.
    held_out = tuple(name for name in watchers if name != config.rewards.objective)
    rewards = config.rewards.model_copy(update={"held_out": held_out})
    return config.model_copy(update={"rewards": rewards})


def _check_own_material(config: RunConfig) -> None:
    missing = {}
    if "train" not in config.prompts.model_fields_set:
        missing["--prompts FILE"] = "prompts.train"
    if "objective" not in config.rewards.model_fields_set:
        missing["--reward NAME"] = "rewards.objective"
    if missing:
        raise ConfigError(
            f"'{config.pipeline}' needs {' and '.join(missing)} ({' and '.join(missing.values())} "
            "of the configuration): the default prompts and reward know only the small world of "
            "the shipped pipeline."
        )


def check_own_prompts(pipeline: str, prompts: Path | str | None) -> None:
    """Refuse to judge another pipeline on the prompts of the shipped one without being asked to.

    Raises:
        ConfigError: there are no prompts.
    """
    if prompts is None and pipeline != SHIPPED:
        raise ConfigError(
            f"'{pipeline}' needs --prompts FILE: the default prompts know only the small world of "
            "the shipped pipeline."
        )
