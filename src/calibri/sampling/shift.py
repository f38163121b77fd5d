"""A factor on the shift of the noise schedule of flow matching.

A shift a moves a noise level t to ``a t / (1 + (a - 1) t)`` (Esser et al. 2024, arXiv 2403.03206,
section 5.3.2), so that more steps are spent where there is much noise. Schedulers have a fixed
shift, or the pipeline gives them one that depends on the size of the image, as ``mu = ln a``.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from calibri.coefficients import check_factors
from calibri.pipelines import Pipeline


def change_shift(pipe: Pipeline, factor: float) -> Callable[[], None]:
    """Multiply the shift of a pipeline's scheduler by a factor.

    The scheduler itself changes, so that pipelines that have it in common, such as those that
    ``from_pipe`` makes, keep and lose the factor together. Its configuration does not: what is
    saved or made from that is the original.

    Args:
        pipe: its scheduler is left alone when the factor is 1.
        factor: above 0.

    Returns:
        A function that makes the scheduler what it was before.

    Raises:
        UnsupportedModelError: the scheduler is another than FlowMatchEulerDiscreteScheduler.
    """
    if factor == 1.0:
        return lambda: None
    check_factors(("shift",), pipe)
    scheduler: Any = pipe.scheduler
    kind, state = type(scheduler), dict(vars(scheduler))
    shifted = _shifted(scheduler, factor)
    # The settings of a class of diffusers are in its configuration, kept under this name.
    changed = {name: v for name, v in vars(shifted).items() if name != "_internal_dict"}
    _become(scheduler, type(shifted), state | changed)
    return functools.partial(_become, scheduler, kind, state)


def _become(scheduler: Any, kind: type, state: Mapping[str, Any]) -> None:
    scheduler.__class__ = kind
    vars(scheduler).clear()
    vars(scheduler).update(state)


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
