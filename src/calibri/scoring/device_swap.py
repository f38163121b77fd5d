"""Networks that alternate on one device: the pipeline while images are sampled, then the rewards.

FLUX (24 GB) and HPSv3 (16 GB) do not fit on a card of 40 GB together. Moving 24 GB takes seconds,
so it should be done seldom: sample many images, keep them as uint8 in host memory, then score
them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import torch

from calibri.errors import RunError
from calibri.memory import is_out_of_memory
from calibri.pipelines import movable_modules
from calibri.rewards import ModelReward, Reward

# uint8 images in host memory that wait to be scored: 0.8 GB at 512 x 512, 3.2 GB at 1024 x 1024.
MOST_IMAGES = 1024
PIPELINE, REWARDS = "pipeline", "rewards"

Item = TypeVar("Item")
Made = TypeVar("Made")
Result = TypeVar("Result")


class Movable(Protocol):
    """A network, or a reward that has one (``ModelReward``)."""

    def to(self, device: torch.device, /) -> Any:
        """Move to a device; costs nothing when it is there already."""
        ...


class DeviceSwap:
    """Groups of networks of which one at a time lives on a device, the others on another.

    Nothing is moved until a group is first used. Weights must not change while they are away; hooks
    may.

    Args:
        device: where the group in use is.
        groups: name to what moves together; an empty group only sends the others away.
        away: where the others wait, usually the CPU.

    Attributes:
        here: name of the group in use; None before the first, and after a move that failed.
        moves: times that a group took the place of another.
    """

    def __init__(
        self,
        device: torch.device | str,
        groups: Mapping[str, Sequence[Movable]],
        away: torch.device | str = "cpu",
    ) -> None:
        self.device, self.away = torch.device(device), torch.device(away)
        self._groups = {name: tuple(members) for name, members in groups.items()}
        self.here: str | None = None
        self.moves = 0

    def use(self, name: str) -> None:
        """Send all other groups away, then bring this one.

        Raises:
            RunError: it does not fit on the device even alone. The next call moves everything.
        """
        if name == self.here:
            return
        self.here = None
        try:
            # Weights moved in inference mode could never take part in a gradient.
            with torch.inference_mode(False):
                for other, members in self._groups.items():
                    if other != name:
                        _move(members, self.away)
                # The allocator's free blocks are of the sizes of the group that left.
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()
                _move(self._groups[name], self.device)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise RunError(
                f"The networks for '{name}' do not fit on '{self.device}' even with the others "
                f"away, or the others do not fit on '{self.away}'. Use a smaller dtype, another "
                "device, or fewer rewards."
            ) from error
        self.here = name
        self.moves += 1


def _move(members: Iterable[Movable], device: torch.device) -> None:
    for member in members:
        member.to(device)


def alternate(
    swap: DeviceSwap,
    items: Iterable[Item],
    sample: tuple[str, Callable[[Item], Made]],
    score: tuple[str, Callable[[Item, Made], Result]],
    *,
    size: Callable[[Item], int] = lambda item: 1,
    most: int = MOST_IMAGES,
) -> Iterator[Result]:
    """Do the first step of many items, then the second: each device's owner changes twice a part.

    Args:
        swap: whose groups the steps use.
        items: for example units of rows; results come in their order.
        sample: group and first step, whose outcome waits in host memory.
        score: group and second step, which is given the item and what was made of it.
        size: images of an item.
        most: images of a part; an item that is larger is a part of its own.

    Yields:
        What the second step returns, as soon as it is there.
    """
    for part in in_parts(items, size, most):
        made: list[tuple[Item, Made]] = []
        try:
            swap.use(sample[0])
            for item in part:
                made.append((item, sample[1](item)))
        except BaseException:  # a fault or Ctrl-C: what was sampled is paid for, so it is scored
            yield from _scored(swap, made, score)
            raise
        yield from _scored(swap, made, score)


def _scored(
    swap: DeviceSwap,
    made: Iterable[tuple[Item, Made]],
    score: tuple[str, Callable[[Item, Made], Result]],
) -> Iterator[Result]:
    for item, outcome in made:
        # A caller may have sampled in between, for an image that failed.
        swap.use(score[0])
        yield score[1](item, outcome)


def in_parts(items: Iterable[Item], size: Callable[[Item], int], most: int) -> Iterator[list[Item]]:
    """Group items as they come, at least one in each part, up to a sum of their sizes."""
    part: list[Item] = []
    held = 0
    for item in items:
        if part and held + size(item) > most:
            yield part
            part, held = [], 0
        part.append(item)
        held += size(item)
    if part:
        yield part


def share_device(pipe: Any, rewards: Iterable[Reward], device: torch.device) -> DeviceSwap:
    """Let a pipeline and the rewards on its device alternate on it.

    Args:
        pipe: a diffusers pipeline on ``device``; left alone where ``movable_modules`` is empty. Its
            text encoders are no part of this, see ``Sampler.offload_encoders``.
        rewards: all of a run; those without a network, or on another device, stay where they are.
        device: of the pipeline.

    Returns:
        Groups ``PIPELINE`` and ``REWARDS``.
    """
    sharing = [r for r in rewards if isinstance(r, ModelReward) and _is_same(r.device, device)]
    movable = movable_modules(pipe)
    encoders = [part for name, part in pipe.components.items() if name.startswith("text_encoder")]
    staying = [module for module in movable if not any(module is part for part in encoders)]
    return DeviceSwap(device, {PIPELINE: staying, REWARDS: sharing})


def _is_same(one: torch.device, other: torch.device) -> bool:
    return (one.type, one.index or 0) == (other.type, other.index or 0)
