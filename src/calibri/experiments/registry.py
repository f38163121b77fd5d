"""The experiments there are, by name; each is a module of this room."""

from __future__ import annotations

from typing import Literal

from calibri.errors import ConfigError, suggestion

Kind = Literal["grid", "searches", "run"]

# What it asks, and what it does: samples, searches in several ways, or looks at a finished run.
EXPERIMENTS: dict[str, tuple[str, Kind]] = {
    "ablation": ("what each block is worth: the reward when it is bypassed", "grid"),
    "sweep": ("the reward over the scale of each block, and where it is best", "grid"),
    "granularity": ("block, layer or gate, at equal cost", "searches"),
    "optimisers": ("CMA-ES, gradients and simpler ways, with the same images", "searches"),
    "steps": ("original and calibrated over the number of steps", "searches"),
    "ensemble": ("ensembles of 1 to 3 members, over steps and evaluations", "searches"),
    "backbones": ("several pipelines, calibrated at few steps or not", "searches"),
    "alignment": ("the pipeline calibrated, aligned by a LoRA, and both", "searches"),
    "rewards": ("each reward as the objective, all of them as metrics", "searches"),
    "diversity": ("how much the images of a prompt differ, before and after", "searches"),
    "trajectory": ("knots, shift and guidance against constants, at equal cost", "searches"),
    "convergence": ("sigma and reward over the generations of a run", "run"),
    "cost": ("images, hours and FLOPs of a run", "run"),
}


def check_experiment(name: str, *, with_run: bool, searches: int | None = None) -> None:
    """Refuse an experiment that does not exist, or one without what it looks at.

    Args:
        name: what a person typed.
        with_run: whether a finished run is given.
        searches: how many of each kind were asked for, if they were.

    Raises:
        ConfigError: there is no such experiment, it needs a run, or it takes no run or searches.
    """
    if name not in EXPERIMENTS:
        raise ConfigError(f"There is no experiment '{name}'. {suggestion(name, EXPERIMENTS)}")
    _, kind = EXPERIMENTS[name]
    if searches is not None and kind != "searches":
        raise ConfigError(f"'{name}' does not search. Leave out --searches.")
    of_run = kind == "run"
    if of_run and not with_run:
        raise ConfigError(f"'{name}' looks at a finished run. Name it: --run RUN.")
    if with_run and not of_run:
        raise ConfigError(f"'{name}' samples images of its own and takes no run. Leave out --run.")
