"""In which order the rows of units are sampled and measured on one bench."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from calibri.scoring.backends.retry import Values, finished
from calibri.scoring.bench import Bench
from calibri.scoring.device_swap import PIPELINE, REWARDS, DeviceSwap, alternate
from calibri.scoring.pictures import Pictures
from calibri.scoring.units import Result, Row, Unit


def make_executor(bench: Bench) -> InOrder:
    """Choose what suits the device of a bench."""
    if bench.swap is not None:
        return Alternating(bench, bench.swap)
    # A GPU that samples leaves the host idle.
    return Overlapped(bench) if bench.device.type == "cuda" else InOrder(bench)


class InOrder:
    """One unit after the other, each sampled and then measured."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench

    def run(self, units: Iterable[tuple[int, Unit]]) -> Iterator[tuple[int, Result]]:
        """Yield the index of a unit and its scores in the order of the units.

        Raises:
            RewardError: a measure returned a number that is not finite, and the policy is not to
                drop it.
            RunError: one image alone does not fit into memory.
        """
        for index, unit in units:
            pictures = self.sample(unit, unit.rows)
            yield index, self.finish(unit, self.measure(unit, unit.rows, pictures))

    def sample(self, unit: Unit, rows: Sequence[Row]) -> Pictures:
        """Sample rows of a unit."""
        return self._bench.sample(unit, rows)

    def measure(self, unit: Unit, rows: Sequence[Row], pictures: Pictures) -> Values:
        """Measure images of rows of a unit."""
        return self._bench.measure(unit, rows, pictures)

    def finish(self, unit: Unit, values: Values) -> Result:
        """Try again what failed, refuse what fails for good."""
        policy = self._bench.config.rewards.on_failure
        return finished(unit, values, policy, self.sample, self.measure)

    def close(self) -> None:
        """Give back what was held."""


class Overlapped(InOrder):
    """A unit is measured in a thread, on a CUDA stream of its own, while the next is sampled."""

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench)
        self._thread = ThreadPoolExecutor(1, "measuring")

    def run(self, units: Iterable[tuple[int, Unit]]) -> Iterator[tuple[int, Result]]:
        """Yield the index of a unit and its scores in the order of the units."""
        waiting: list[tuple[int, Unit, Future[Values]]] = []

        def arrived() -> Iterator[tuple[int, Result]]:
            while waiting:
                index, unit, future = waiting.pop()
                yield index, self.finish(unit, future.result())

        for index, unit in units:
            try:
                pictures = self.sample(unit, unit.rows)
            except BaseException:  # a fault or Ctrl-C: keep what was measured meanwhile
                yield from arrived()
                raise
            future = self._thread.submit(self._aside, unit, unit.rows, pictures)
            yield from arrived()
            waiting.append((index, unit, future))
        yield from arrived()

    def measure(self, unit: Unit, rows: Sequence[Row], pictures: Pictures) -> Values:
        """Measure in the thread: rewards remember prompts, so two threads must not score."""
        return self._thread.submit(self._aside, unit, rows, pictures).result()

    def _aside(self, unit: Unit, rows: Sequence[Row], pictures: Pictures) -> Values:
        """Measure on a stream of its own, so that the next unit's kernels need not wait."""
        if not torch.cuda.is_available():
            return super().measure(unit, rows, pictures)
        stream: torch.cuda.Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        with torch.cuda.stream(stream):
            values = super().measure(unit, rows, pictures)
        stream.synchronize()
        return values

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown()


class Alternating(InOrder):
    """Many units are sampled before they are measured: both do not fit on the device together."""

    def __init__(self, bench: Bench, swap: DeviceSwap) -> None:
        super().__init__(bench)
        self._swap = swap

    def run(self, units: Iterable[tuple[int, Unit]]) -> Iterator[tuple[int, Result]]:
        """Yield the index of a unit and its scores in the order of the units."""

        def sample(item: tuple[int, Unit]) -> Pictures:
            return self.sample(item[1], item[1].rows).cpu()

        def score(item: tuple[int, Unit], pictures: Pictures) -> tuple[int, Result]:
            index, unit = item
            return index, self.finish(unit, self.measure(unit, unit.rows, pictures))

        steps = (PIPELINE, sample), (REWARDS, score)
        yield from alternate(self._swap, units, *steps, size=lambda item: len(item[1].rows))

    def sample(self, unit: Unit, rows: Sequence[Row]) -> Pictures:
        """Bring the pipeline to the device, then sample."""
        self._swap.use(PIPELINE)
        return super().sample(unit, rows)

    def measure(self, unit: Unit, rows: Sequence[Row], pictures: Pictures) -> Values:
        """Bring the rewards to the device, then measure."""
        self._swap.use(REWARDS)
        return super().measure(unit, rows, pictures)
