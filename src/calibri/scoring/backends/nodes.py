"""Which nodes of a cluster have room for workers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


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
        name: host name or address, for people.
        gpus: of all workers on it together.
        cpus: the same.
    """

    id: str
    name: str
    gpus: float
    cpus: float

    def __str__(self) -> str:
        return f"{self.name} has {self.gpus:g} GPUs and {self.cpus:g} CPUs"

    def room(self, needs: Needs) -> int:
        """Count the workers that fit on it."""
        # A third of a GPU fits three times, in binary too.
        counts = [
            int(has / asked + 1e-6)
            for has, asked in ((self.gpus, needs.gpus), (self.cpus, needs.cpus))
            if asked > 0
        ]
        return min(counts, default=0)


def place(
    nodes: Iterable[Node], needs: Needs, there: Mapping[str, int], most: int | None = None
) -> list[Node]:
    """Choose nodes for new workers, in turns.

    Args:
        nodes: that may be used.
        needs: of each worker.
        there: workers that each node has already, by its id.
        most: new workers; None for as many as there is room for.
    """
    free = {node: node.room(needs) - there.get(node.id, 0) for node in nodes}
    chosen: list[Node] = []
    while any(count > 0 for count in free.values()):
        for node in [node for node, count in free.items() if count > 0]:
            free[node] -= 1
            chosen.append(node)
    return chosen if most is None else chosen[: max(0, most)]
