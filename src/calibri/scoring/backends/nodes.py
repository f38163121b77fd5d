"""Which nodes of a cluster have room for workers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

# A third of a GPU fits three times, in binary too.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Needs:
    """What a worker asks of its node, in Ray's units.

    Attributes:
        gpus: less than 1 to share one.
        cpus: cores.
    """

    gpus: float
    cpus: float

    def __str__(self) -> str:
        return f"{self.gpus:g} GPUs and {self.cpus:g} CPUs"


@dataclass(frozen=True)
class Node:
    """A machine of a cluster.

    Attributes:
        id: Ray's.
        name: host name and address, for people.
        gpus: of all workers on it together.
        cpus: the same.
    """

    id: str
    name: str
    gpus: float
    cpus: float

    def __str__(self) -> str:
        return f"{self.name} has {self.gpus:g} GPUs and {self.cpus:g} CPUs"

    def without(self, needs: Needs) -> Node:
        """The node with one worker more on it."""
        return replace(self, gpus=self.gpus - needs.gpus, cpus=self.cpus - needs.cpus)

    def room(self, needs: Needs) -> int:
        """Count the workers that fit on it."""
        pairs = (self.gpus, needs.gpus), (self.cpus, needs.cpus)
        counts = [int((has + _ROUNDING) / asked) for has, asked in pairs if asked > 0]
        return max(0, min(counts, default=0))


def place(nodes: Iterable[Node], needs: Needs, most: int | None = None) -> list[Node]:
    """Choose nodes for new workers, in turns.

    Args:
        nodes: that may be used, less what is used already.
        needs: of each worker.
        most: new workers; None for as many as there is room for.

    Returns:
        A node once for each worker.
    """
    free = {node: node.room(needs) for node in nodes}
    chosen: list[Node] = []
    while any(free.values()):
        turn = [node for node, count in free.items() if count]
        for node in turn:
            free[node] -= 1
        chosen += turn
    return chosen if most is None else chosen[: max(0, most)]
