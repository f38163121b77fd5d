"""Which timestep pipelines give a transformer, as a function of the scheduler's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

# What a transformer is given when the scheduler is at t of n = num_train_timesteps.
Formula = Literal["t", "t - 1", "t / n", "t / 1000", "1 - t / n", "1 - t / 1000"]
_FORMULAS: dict[Formula, Callable[[float, float], float]] = {
    "t": lambda t, n: t,
    "t - 1": lambda t, n: t - 1,
    "t / n": lambda t, n: t / n,
    "t / 1000": lambda t, n: t / 1000,
    "1 - t / n": lambda t, n: 1 - t / n,
    "1 - t / 1000": lambda t, n: 1 - t / 1000,
}


@dataclass(frozen=True)
class Schedule:
    """Where the timesteps of a scheduler begin and end.

    Attributes:
        image: t of an image without noise.
        noise: t of pure noise.
        count: ``num_train_timesteps``.
    """

    image: float
    noise: float
    count: int

    def position(self, timestep: float) -> float:
        """Tell where on the trajectory t is: 0 at the image, 1 at pure noise."""
        return (timestep - self.image) / (self.noise - self.image)

    @classmethod
    def flow(cls, count: int = 1000) -> Schedule:
        """Flow matching: t is n times the share of noise."""
        return cls(0, count, count)

    @classmethod
    def inverted(cls, count: int = 1000) -> Schedule:
        """Flow matching that counts from noise to image, ``invert_sigmas``."""
        return cls(count, 0, count)

    @classmethod
    def diffusion(cls, count: int = 1000) -> Schedule:
        """DDPM and what solves its equation: t is one of 0 .. n - 1."""
        return cls(0, count - 1, count)

    @classmethod
    def of(cls, scheduler: Any) -> Schedule | None:
        """Read it off a scheduler of diffusers; None where t is no measure of the noise (EDM)."""
        config: Mapping[str, Any] = getattr(scheduler, "config", {})
        count = config.get("num_train_timesteps")
        # Cosmos 2 registers the sigma_data of EDM with a scheduler of flow matching.
        if count is None or ("sigma_data" in config and "invert_sigmas" not in config):
            return None
        if config.get("invert_sigmas"):
            return cls.inverted(count)
        # Solvers made for DDPM have its betas even where they follow a flow.
        if "beta_start" in config and not config.get("use_flow_sigmas"):
            return cls.diffusion(count)
        return cls.flow(count)


FLOW, INVERTED, DIFFUSION = Schedule.flow(), Schedule.inverted(), Schedule.diffusion()


@dataclass(frozen=True)
class Timesteps:
    """The timestep that pipelines give a class of transformer.

    Attributes:
        formula: what it is, by the scheduler's t and its number n of timesteps.
        schedule: of the scheduler that published pipelines have, for a transformer on its own;
            None where they differ, so that only a pipeline tells.
        argument: of the transformer's forward.
        factor: field of the transformer's configuration that pipelines multiply it by.
    """

    formula: Formula = "t"
    schedule: Schedule | None = FLOW
    argument: str = "timestep"
    factor: str = ""

    def range(self, schedule: Schedule, config: Any = None) -> tuple[float, float]:
        """Return what a transformer is given at the image and at pure noise.

        Args:
            schedule: of the scheduler in use.
            config: of the transformer.
        """
        of = _FORMULAS[self.formula]
        factor = float(getattr(config, self.factor, 1.0)) if self.factor else 1.0
        image, noise = of(schedule.image, schedule.count), of(schedule.noise, schedule.count)
        return image * factor, noise * factor


# The scheduler's own t, and the share of noise or of image that many pipelines make of it.
COUNTED = Timesteps()
SHARE = Timesteps("t / 1000")
SHARE_OF_IMAGE = Timesteps("1 - t / n")
