"""How much of a command is done, and how long the rest takes."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping

from calibri.results import Computed

_RECENT = 60.0  # seconds
_NAMED_WORKERS = 4


class Tally:
    """Counts images by phase and estimates the time left over all phases.

    The pace is work per second of newly sampled images alone: what a resumed run reads from its
    journal takes no time and must not look like speed.

    Args:
        upcoming: images of phases that are known to come.
        cost: work of one image of a phase, in images of the search; 1 where it is not named.
        clock: seconds from any origin.

    Attributes:
        failed: images that could not be scored.
        retries: of units and images.
    """

    def __init__(
        self,
        upcoming: Mapping[str, int] | None = None,
        cost: Mapping[str, float] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total = dict(upcoming or {})
        self.done: dict[str, int] = {}
        self.current = ""
        self._cost = dict(cost or {})
        self._clock = clock
        self._last = clock()
        self._work = 0.0
        self._seconds = 0.0
        self.failed = 0
        self.retries = 0
        self._started = self._last
        self._recent: deque[tuple[float, Computed]] = deque()

    def phase(self, name: str, images: int) -> None:
        """Begin a phase; earlier ones count as finished, whatever was planned for them."""
        for earlier in self.done:
            self.total[earlier] = self.done[earlier]
        self.total[name] = images
        self.done[name] = 0
        self.current = name
        self._last = self._clock()

    def unit(self, images: int, new: bool) -> None:
        """Count the images of a unit."""
        now = self._clock()
        if new:
            self._work += images * self._cost.get(self.current, 1.0)
            self._seconds += now - self._last
        self._last = now
        self.done[self.current] = self.done.get(self.current, 0) + images

    def worked(self, unit: Computed) -> None:
        """Count who computed a unit, and what went wrong."""
        self.failed += unit.failed
        self.retries += unit.retries
        now = self._clock()
        self._recent.append((now, unit))
        while self._recent[0][0] < now - _RECENT:
            self._recent.popleft()

    def workers(self) -> dict[str, float]:
        """Images per second of each worker over the last minute; empty where there is only one."""
        images: Counter[str] = Counter()
        for _, unit in self._recent:
            images[unit.worker] += unit.images
        seconds = min(_RECENT, self._clock() - self._started)
        if len(images) < 2 or not seconds:
            return {}
        return {worker: images[worker] / seconds for worker in sorted(images)}

    @property
    def phases(self) -> list[str]:
        """Phases that have begun, then those that are known to come."""
        return [*self.done, *(name for name in self.total if name not in self.done)]

    def fraction(self, phase: str) -> float:
        """Part of a phase that is done, 0 to 1."""
        total = self.total.get(phase, 0)
        return min(1.0, self.done.get(phase, 0) / total) if total else 0.0

    def seconds_left(self) -> float | None:
        """Estimate the time until the end, or None before anything new was sampled."""
        if not self._work:
            return None
        left = sum(
            max(0, total - self.done.get(name, 0)) * self._cost.get(name, 1.0)
            for name, total in self.total.items()
        )
        since = self._clock() - self._last
        return max(0.0, left * self._seconds / self._work - since)


def clock_time(seconds: float | None) -> str:
    """Write a duration as 1:05 or 2:01:05; ``-:--`` when it is not known."""
    if seconds is None:
        return "-:--"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def speed_words(workers: Mapping[str, float]) -> str:
    """Write how fast workers are: each of a few, the range of many.

    Args:
        workers: images per second of each.
    """
    if len(workers) <= _NAMED_WORKERS:
        return ", ".join(f"{worker} {pace:.3g}" for worker, pace in workers.items())
    low, high = min(workers.values()), max(workers.values())
    return f"{len(workers)} workers, {low:.3g} to {high:.3g} each"


def trouble_words(failed: int, retries: int) -> str:
    """Write what went wrong; nothing where nothing did."""
    parts = [f"{failed:,} images failed"] * bool(failed) + [f"{retries:,} retries"] * bool(retries)
    return ", ".join(parts)
