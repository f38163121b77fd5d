"""A factor on the shift of the noise schedule of flow matching.

A shift a moves a noise level t to ``a t / (1 + (a - 1) t)`` (Esser et al. 2024, arXiv 2403.03206,
section 5.3.2), so that more steps are spent where there is much noise. Schedulers have a fixed
shift, or the pipeline gives them one that depends on the size of the image, as ``mu = ln a``.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from calibri.coefficients import check_factors
from calibri.pipelines import Pipeline


def change_shift(pipe: Pipeline, factor: float) -> Callable[[], None]:
    """Give a pipeline a scheduler whose shift is that of its own times a factor.

    Args:
        pipe: its scheduler is replaced by a copy, and left alone when the factor is 1.
        factor: above 0.

    Returns:
        A function that gives the pipeline its scheduler back.

    Raises:
        UnsupportedModelError: the scheduler is another than FlowMatchEulerDiscreteScheduler.
    """
    if factor == 1.0:
        return lambda: None
    check_factors(("shift",), pipe)
    before = pipe.scheduler
    pipe.scheduler = changed = _shifted(before, factor)

    def undo() -> None:
        if pipe.scheduler is changed:  # and not one that it was given since
            pipe.scheduler = before

    return undo


@contextmanager
def changed_shift(pipe: Pipeline, factor: float) -> Iterator[None]:
    """Change the shift of a pipeline for what is sampled inside; see ``change_shift``."""
    undo = change_shift(pipe, factor)
    try:
        yield
    finally:
        undo()


def _shifted(scheduler: Any, factor: float) -> Any:
    kind, config = type(scheduler), scheduler.config
    if not config.use_dynamic_shifting:
        return kind.from_config(config, shift=scheduler.shift * factor)
    is_logarithm = config.time_shift_type == "exponential"

    @functools.wraps(kind.set_timesteps)  # pipelines look at its signature
    def set_timesteps(self: Any, *args: Any, mu: float | None = None, **kwargs: Any) -> None:
        if mu is not None:
            mu = mu + math.log(factor) if is_logarithm else mu * factor
        kind.set_timesteps(self, *args, mu=mu, **kwargs)

    # A class of the same name, so that a pipeline that copies or saves it finds what it knows.
    own = {"set_timesteps": set_timesteps, "__module__": kind.__module__}
    shifted: Any = type(kind.__name__, (kind,), own)
    return shifted.from_config(config)
