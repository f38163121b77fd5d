"""Compute units in this process."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from functools import cached_property

from calibri.scoring.backends.executors import InOrder, make_executor
from calibri.scoring.bench import Bench
from calibri.scoring.gradients import Differentiator
from calibri.scoring.plain_json import encode_images
from calibri.scoring.policy import PolicyDifferentiator
from calibri.scoring.units import Index, Kind, Result, Unit


class Local:
    """Computes units on one bench.

    Args:
        bench: samples and measures.
        executor: in which order; None for what suits the bench's device.
    """

    def __init__(self, bench: Bench, executor: InOrder | None = None) -> None:
        self._bench = bench
        self._executor = executor or make_executor(bench)

    @cached_property
    def _differentiator(self) -> Differentiator:
        return Differentiator(self._bench)

    @cached_property
    def _policy(self) -> PolicyDifferentiator:
        return PolicyDifferentiator(self._bench)

    def run(
        self, units: Iterable[tuple[Index, Unit]], ahead: Iterable[tuple[Index, Unit]] = ()
    ) -> Iterator[tuple[Index, Result]]:
        """Yield the index of a unit and its result in the order of the units; none ahead.

        A result says how many images were computed at once where fewer fitted than configured.

        Raises:
            RewardError: a measure returned a number that is not finite, and the policy is not to
                drop it.
            RunError: one image alone does not fit into memory.
        """
        for kind, group in itertools.groupby(units, key=lambda item: item[1].kind):
            for index, result in self._results(kind, group):
                yield index, result | self.smaller_batch(kind)

    def _results(
        self, kind: Kind, units: Iterable[tuple[Index, Unit]]
    ) -> Iterator[tuple[Index, Result]]:
        if kind == "scores":
            yield from self._executor.run(units)
        elif kind == "images":
            yield from ((index, self._images(unit)) for index, unit in units)
        elif kind == "gradients":
            yield from self._differentiator.run(units)
        else:
            yield from self._policy.run(units)

    def smaller_batch(self, kind: Kind) -> Result:
        """Say how many images were computed at once, where fewer fitted than configured."""
        where = {"gradients": "_differentiator", "policy": "_policy"}.get(kind, "_bench")
        wanted = self._bench.config.sampling.batch_size
        fitted: int = getattr(self, where).batch_size
        return {"batch_size": fitted} if fitted < wanted else {}

    def _images(self, unit: Unit) -> Result:
        return {"images": encode_images(self._executor.sample(unit, unit.rows).pixels)}

    def close(self) -> None:
        """Give back what was held."""
        self._executor.close()
