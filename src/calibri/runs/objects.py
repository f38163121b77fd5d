"""What is given as objects, which no configuration can name: a loaded pipeline, rewards."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from calibri.config import SHIPPED, RewardConfig, RunConfig
from calibri.configure import ConfigLike, merge_config, with_own_material
from calibri.errors import ConfigError
from calibri.pipelines import place_of
from calibri.rewards import Reward, name_rewards, used_rewards
from calibri.shapes import PIPELINE_PATH

_PIPELINE, _REWARD = "a pipeline", "the reward"


@dataclass(frozen=True)
class Given:
    """Objects that a run is given.

    Attributes:
        pipe: a loaded pipeline; None for the one that the configuration names.
        rewards: name to reward.
    """

    pipe: Any = None
    rewards: Mapping[str, Reward] = field(default_factory=dict)

    @property
    def needed(self) -> list[str]:
        """What must be given again to resume the run, in words."""
        rewards = [f"{_REWARD} '{name}'" for name in self.rewards]
        return [_PIPELINE, *rewards] if self.pipe is not None else rewards

    def check(self, needed: Iterable[str]) -> None:
        """Refuse to resume a run without what it was started with.

        Args:
            needed: what it was started with, as ``needed``.

        Raises:
            ConfigError: something is missing.
        """
        if missing := [what for what in needed if what not in self.needed]:
            raise ConfigError(
                f"This run was started from Python with {' and '.join(missing)} as an object, "
                "which no file can hold. Give it again: calibri.resume(path, pipeline=..., "
                "rewards=[...])."
            )


def configured(
    config: ConfigLike | None,
    values: Mapping[str, Any],
    pipeline: Any,
    rewards: Mapping[str, Any] | Sequence[Any] | None,
) -> tuple[RunConfig, Given]:
    """Sort what a run is called with into what a configuration holds and what are objects.

    Args:
        config: see ``merge_config``.
        values: keys of a configuration, which win.
        pipeline: a name or a loaded pipeline.
        rewards: the objective and its watchers, or the section of a configuration. Objects alone,
            under names that the configuration uses, stand for these.

    Raises:
        ConfigError: a name or a value is wrong.
        RewardError: a reward cannot be made.
    """
    name, pipe = split_pipeline(pipeline)
    sections: dict[str, Any] = dict(values)
    if pipe is not None:
        sections |= _of_pipeline(pipe)
    elif name is not None:
        sections["pipeline"] = name
    objects: dict[str, Reward] = {}
    if isinstance(rewards, Mapping | RewardConfig):
        sections["rewards"] = rewards
    elif rewards is not None:
        names, objects = name_rewards(rewards)
        if config is None or not set(names) <= set(objects) & set(
            used_rewards(merge_config(config))
        ):
            sections["rewards"] = _rewards_section(names)
    merged = merge_config(config, sections, ("name", "runs", "progress"))
    if pipe is None:
        place_of(merged.pipeline)  # a folder that is missing is said before what else is
    return with_own_material(merged), Given(pipe, objects)


def _rewards_section(names: Sequence[str]) -> dict[str, Any]:
    if not names:
        raise ConfigError("rewards is empty. Give at least one reward, the objective.")
    return {"objective": names[0], "held_out": names[1:]}


def _of_pipeline(pipe: Any) -> dict[str, str]:
    """Name a loaded pipeline, for the record."""
    loaded = str(getattr(pipe, "config", {}).get("_name_or_path") or type(pipe).__name__)
    name = SHIPPED if Path(loaded) == PIPELINE_PATH else loaded
    return {"pipeline": name, "dtype": str(pipe.dtype).removeprefix("torch.")}


def split_pipeline(pipeline: Any) -> tuple[str | None, Any]:
    """Tell a name from a loaded pipeline: (name, None) or (None, pipeline)."""
    if pipeline is None or isinstance(pipeline, str | Path):
        return (None if pipeline is None else str(pipeline)), None
    return None, pipeline
