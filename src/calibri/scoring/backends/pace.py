"""How long units take, and so how long an answer may be waited for."""

from __future__ import annotations

from dataclasses import dataclass

_PATIENCE = 20.0


@dataclass
class Pace:
    """How long units take, shared by the workers of a run.

    Attributes:
        longest: seconds of the slowest unit so far; None before the first.
        least: seconds that any unit may take.
        first: seconds until the first answer of a worker, which downloads and loads its models.
    """

    longest: float | None = None
    least: float = 300.0
    first: float = 7200.0

    @property
    def patience(self) -> float:
        """Seconds after which a worker is taken for stuck: a multiple of what units took."""
        return self.first if self.longest is None else max(self.least, _PATIENCE * self.longest)

    def add(self, seconds: float) -> None:
        """Note how long a unit took."""
        self.longest = max(self.longest or 0.0, seconds)
