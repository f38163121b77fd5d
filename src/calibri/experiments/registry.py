"""The experiments there are, by name; each is a module of this room."""

from __future__ import annotations

from calibri.errors import ConfigError, suggestion

# What it asks, and whether it looks at a finished run instead of a pipeline.
EXPERIMENTS: dict[str, tuple[str, bool]] = {
    "ablation": ("what each block is worth: the reward when it is bypassed", False),
    "sweep": ("the reward over the scale of each block, and where it is best", False),
    "convergence": ("sigma and reward over the generations of a run", True),
    "cost": ("images, hours and FLOPs of a run", True),
}


def check_experiment(name: str, *, with_run: bool) -> None:
    """Refuse an experiment that does not exist, or one without what it looks at.

    Args:
        name: what a person typed.
        with_run: whether a finished run is given.

    Raises:
        ConfigError: there is no such experiment, it needs a run, or it takes none.
    """
    if name not in EXPERIMENTS:
        raise ConfigError(f"There is no experiment '{name}'. {suggestion(name, EXPERIMENTS)}")
    _, of_run = EXPERIMENTS[name]
    if of_run and not with_run:
        raise ConfigError(f"'{name}' looks at a finished run. Name it: --run RUN.")
    if with_run and not of_run:
        raise ConfigError(f"'{name}' samples images of its own and takes no run. Leave out --run.")
