"""A cache over sampling steps: the transformer runs at every k-th, and is guessed between.

The guess is linear in the timestep, through the last two outputs that were computed: TaylorSeer's
(Liu et al. 2025, arXiv 2503.06923) of first order, on the output of the transformer in place of
those of its layers. Which steps are computed is fixed. Caches that decide by the residual of the
first block average it over the batch, and candidates scale it, so that they would treat candidates
differently and an image by its neighbours.

The scales of a candidate are in the outputs that the guess is made of, each in its own row. What is
cached is seen from outside of a forward, so it composes with hooks, offloading and compiled blocks.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from calibri.errors import UnsupportedModelError
from calibri.pipelines import Network
from calibri.trees import mapped

# What transformers call the timestep.
_TIMESTEPS = ("timestep", "timesteps", "t")


def check_cache(networks: Sequence[Network]) -> None:
    """Refuse transformers whose steps cannot be told apart.

    Raises:
        UnsupportedModelError: a forward takes no timestep.
    """
    for network in networks:
        parameters = inspect.signature(network.transformer.forward).parameters
        if not any(name in parameters for name in _TIMESTEPS):
            raise UnsupportedModelError(
                f"A cache over steps needs the timestep of each forward, and "
                f"{type(network.transformer).__name__} takes none of {', '.join(_TIMESTEPS)}. "
                "Leave cache_interval out."
            )


@contextmanager
def step_cache(networks: Sequence[Network], interval: int | None) -> Iterator[None]:
    """Cache what the transformers return inside, which must be one call of a pipeline.

    Args:
        networks: transformers of a pipeline, each with steps of its own.
        interval: the first and every so many-th step is computed; None leaves everything alone.

    Raises:
        UnsupportedModelError: see ``check_cache``.
    """
    with ExitStack() as stack:
        if interval is not None:
            check_cache(networks)
            for network in networks:
                stack.enter_context(_cached(network.transformer, interval))
        yield


@contextmanager
def _cached(transformer: nn.Module, interval: int) -> Iterator[None]:
    before = vars(transformer).get("forward")
    cache = _StepCache(transformer.forward, interval)

    @functools.wraps(transformer.forward)
    def forward(*args: Any, **kwargs: Any) -> Any:
        return cache(args, kwargs)

    transformer.forward = forward
    try:
        yield
    finally:
        if before is None:
            del transformer.forward
        else:
            transformer.forward = before


class _StepCache:
    """One transformer during one call of its pipeline."""

    def __init__(self, forward: Callable[..., Any], interval: int) -> None:
        self._forward = forward
        self._interval = interval
        self._signature = inspect.signature(forward)
        self._step = -1
        self._time: float | None = None
        # Pipelines may run the branches of guidance one after the other, always in the same order.
        self._call = 0
        # How many calls a step has, once the first one is over.
        self._calls: int | None = None
        # The last two outputs of each call of a step, with their timesteps.
        self._known: dict[int, list[tuple[float, Any]]] = {}

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        time = self._timestep(args, kwargs)
        self._count(time)
        known = self._known.setdefault(self._call, [])
        if known and self._step % self._interval:
            return _guess(known, time)
        output = self._forward(*args, **kwargs)
        # A pipeline may write into what it gets.
        self._known[self._call] = [*known[-1:], (time, _line(output, output, 1.0))]
        return output

    def _timestep(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
        given = self._signature.bind(*args, **kwargs).arguments
        value = next(given[name] for name in _TIMESTEPS if name in given)
        return float(torch.as_tensor(value).flatten()[0])

    def _count(self, time: float) -> None:
        # Timesteps in half precision can be equal at two steps.
        if time == self._time and self._call + 1 != self._calls:
            self._call += 1
            return
        if self._step == 0 and self._calls is None:
            self._calls = self._call + 1
        self._step, self._call, self._time = self._step + 1, 0, time


def _guess(known: list[tuple[float, Any]], time: float) -> Any:
    (first, one), (last, two) = known[0], known[-1]
    return _line(one, two, (time - first) / (last - first) if last != first else 1.0)


def _line(one: Any, two: Any, place: float) -> Any:
    """Go from one output, at place 0, through the other, at 1; copies, in fp32."""

    def line(last: Tensor, first: Tensor) -> Tensor:
        if not last.is_floating_point():
            return last
        return torch.lerp(first.float(), last.float(), place).to(last.dtype)

    return mapped(line, two, one)
