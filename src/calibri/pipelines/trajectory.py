"""Where on the way from noise to image a transformer is called, whatever its timestep counts."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from calibri.errors import GuidanceError, UnsupportedModelError
from calibri.pipelines.families.lookup import classes_where, family_of
from calibri.pipelines.families.timesteps import Schedule, Timesteps


@dataclass(frozen=True)
class Trajectory:
    """The timesteps of a transformer in its pipeline.

    Attributes:
        image: timestep of an image without noise.
        noise: timestep of pure noise.
        argument: of the transformer's forward.
        index: its place among the positional arguments.
    """

    image: float
    noise: float
    argument: str
    index: int

    def position(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """Tell where on the trajectory a forward is.

        Pipelines give all images the same timestep. Where tokens have their own, those of a given
        first frame are done: the noisiest tells how far sampling is.

        Args:
            args: positional arguments of the forward.
            kwargs: its other arguments.

        Returns:
            float32 (1,) in [0, 1] on the device of the timestep: 0 at the image, 1 at pure noise.

        Raises:
            GuidanceError: the forward has no timestep.
        """
        if self.argument in kwargs:
            given = kwargs[self.argument]
        elif self.index < len(args):
            given = args[self.index]
        else:
            given = None
        if given is None:
            raise GuidanceError(
                "The scales change over the sampling steps, but the transformer was called without "
                f"a timestep. Pass {self.argument}."
            )
        # Left on its device, it is not waited for.
        now = torch.as_tensor(given).to(torch.float32)
        places = (now - self.image) / (self.noise - self.image)
        return places.amax().clamp(0.0, 1.0).reshape(1)


def trajectory_of(transformer: nn.Module, scheduler: Any = None) -> Trajectory:
    """Return the timesteps of a transformer; arguments and errors as for ``schedule_of``."""
    schedule, timesteps = schedule_of(transformer, scheduler), _timesteps(transformer)
    image, noise = timesteps.range(schedule, getattr(transformer, "config", None))
    index = _index(type(transformer).forward, timesteps.argument)
    return Trajectory(image, noise, timesteps.argument, index)


def schedule_of(transformer: nn.Module, scheduler: Any = None) -> Schedule:
    """Return where the timesteps of the scheduler of a transformer begin and end.

    Args:
        transformer: a diffusers transformer.
        scheduler: of its pipeline; None for that of published pipelines.

    Raises:
        UnsupportedModelError: what timestep pipelines give this class is not known, or its
            scheduler has timesteps that say nothing of the noise.
    """
    published = _timesteps(transformer).schedule
    schedule = published if scheduler is None else Schedule.of(scheduler)
    if schedule is not None:
        return schedule
    if scheduler is None:
        reason = "its timesteps depend on the pipeline, and this is the transformer alone"
    else:
        reason = f"the timesteps of a {type(scheduler).__name__} are no measure of the noise"
    raise _unknown(transformer, reason)


def _timesteps(transformer: nn.Module) -> Timesteps:
    row = family_of(transformer)
    if row.timesteps is None:
        raise _unknown(transformer, row.no_timesteps)
    return row.timesteps


def knows_timesteps(transformer: nn.Module, scheduler: Any = None) -> bool:
    """Whether scales of a model can change over the sampling steps; see ``schedule_of``."""
    try:
        schedule_of(transformer, scheduler)
    except UnsupportedModelError:
        return False
    return True


def _unknown(transformer: nn.Module, reason: str) -> UnsupportedModelError:
    name, known = type(transformer).__name__, classes_where(lambda row: row.timesteps)
    return UnsupportedModelError(
        f"Scales that change over the sampling steps are not known to work with {name}: {reason}. "
        f"They are with {len(known)} classes, {known[0]} among them. Use one knot."
    )


@cache
def _index(forward: Callable[..., Any], argument: str) -> int:
    names = list(inspect.signature(forward).parameters)
    # Without self.
    return names.index(argument) - 1
