"""What searches of several kinds and seeds came to: gains over seeds and prompts, and curves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from calibri.arrays import Scores, Vector
from calibri.experiments.measured import ORIGINAL, Measured
from calibri.experiments.searching import Found, by_cell, condition_name
from calibri.reporting import Answer, Cell, Drawing, Line, Table, curve_drawing
from calibri.results import Checkpoint, Figure
from calibri.statistics import crossed_mean

INTERVALS = "95% intervals over search seeds and prompts"
# Of lines in a chart, in their order.
STYLES = ("calibrated", "second", "third", "fourth", "fifth", "sixth", "seventh")


@dataclass(frozen=True)
class Trials:
    """Scores of what searches returned, on the same prompts and noise.

    Attributes:
        measured: of the original model, under ``"original"``, and of every search.
        found: what the searches found, with the same seeds in every cell.
        left_out: why cells were left out, by label.
        seeds: of the searches.
    """

    measured: Measured
    found: tuple[Found, ...]
    left_out: Mapping[str, str]
    seeds: tuple[int, ...]

    @property
    def cells(self) -> dict[str, list[Found]]:
        """What was found, by cell."""
        return dict(by_cell(self.found))

    @property
    def rewards(self) -> tuple[str, ...]:
        """Names of the rewards, that which decides first."""
        own = self.measured.objective
        return (own, *(name for name in self.measured.scores if name != own))

    def scores(self, label: str, reward: str | None = None, at: str = "") -> Scores:
        """Scores of a cell, float64 (seeds, prompts), or of the original (1, prompts).

        Args:
            label: of the cell, or ``"original"``.
            reward: None for the one that decides.
            at: how it was sampled, as the names of conditions end.
        """
        table, labels = self.measured.scores[reward or self.measured.objective], self._names(label)
        return np.stack([table[self.measured.labels.index(name + at)] for name in labels])

    def _names(self, label: str) -> list[str]:
        if label == ORIGINAL:
            return [ORIGINAL]
        return [condition_name(label, seed) for seed in self.seeds]

    def mean(self, label: str, reward: str | None = None, at: str = "") -> Figure:
        """Mean score of a cell over seeds and prompts."""
        return crossed_mean(self.scores(label, reward, at))

    def difference(
        self,
        label: str,
        base: str = ORIGINAL,
        reward: str | None = None,
        *,
        comparisons: int = 1,
        at: str = "",
        base_at: str | None = None,
    ) -> Figure:
        """Mean of one cell minus another, paired by seed, prompt and noise.

        Args:
            label: of the cell.
            base: of the other cell, or ``"original"``.
            reward: None for the one that decides.
            comparisons: intervals that a conclusion looks at, of which 5% together may be wrong.
            at: how both were sampled, as the names of conditions end.
            base_at: how the other was, where that differs.
        """
        base_at = at if base_at is None else base_at
        values = self.scores(label, reward, at) - self.scores(base, reward, base_at)
        return crossed_mean(values, 0.05 / comparisons)

    def gains(self, title: str, labels: Sequence[str] | None = None) -> Table:
        """Table of every cell minus the original, on every reward."""
        names = list(self.cells) if labels is None else labels
        columns = [f"{reward}" for reward in self.rewards]
        rows: list[list[Cell]] = [
            [label, *(self.difference(label, reward=reward) for reward in self.rewards)]
            for label in names
        ]
        return Table(title=title, columns=["", *columns], rows=rows, signed=columns)

    def means(self, title: str = "Mean scores") -> Table:
        """Table of the original and of every cell, on every reward."""
        rows: list[list[Cell]] = [
            [label, *(self.mean(label, reward) for reward in self.rewards)]
            for label in (ORIGINAL, *self.cells)
        ]
        return Table(title=title, columns=["", *self.rewards], rows=rows)

    def over_seeds(
        self, label: str, number: Callable[[Found], float], base: str | None = None
    ) -> Figure:
        """Mean of a number of each search of a cell, with its interval over seeds.

        Args:
            label: of the cell.
            number: of a search.
            base: label of the cell of which the same number is subtracted, seed by seed.
        """
        values = np.array([number(found) for found in self.cells[label]])
        if base is not None:
            values -= [number(found) for found in self.cells[base]]
        return over_searches(values)

    def validated(self, label: str, share: float) -> Figure:
        """Validated gain of a cell after a share of its cost, or at its first checkpoint."""

        def gain(found: Found) -> float:
            spent = [cost_of(found, c) / found.costs[-1] for c in found.search.checkpoints]
            # Checkpoints are at whole generations, so about there.
            last = max([i for i, part in enumerate(spent) if part <= share + 0.02], default=0)
            return found.search.checkpoints[last].difference.mean

        return self.over_seeds(label, gain)

    def drawing(self) -> Drawing:
        """Draw the validated gain over the cost of the search so far, a line for each cell."""
        lines = [
            Line(tuple(_curve(own)), label, style)
            for style, (label, own) in zip(STYLES, self.cells.items(), strict=False)
        ]
        return curve_drawing(
            f"Validated gain in {self.rewards[0]} over images",
            "On validation prompts: mean over search seeds, with its interval.",
            {"": lines},
            "images",
        )

    def note(self) -> str:
        """Say how many seeds there are, which searches failed, and what was left out."""
        seeds = f"{len(self.seeds)} seed{'s' * (len(self.seeds) > 1)} of each search"
        alone = "" if len(self.seeds) > 1 else ", so that no interval allows for the seed's chance"
        none = sum(not any(c.chosen for c in f.search.checkpoints) for f in self.found)
        nothing = f"{none} of {len(self.found)} found nothing better and return the original."
        left = [f"Left out is '{k}': {reason}" for k, reason in self.left_out.items()]
        return " ".join([f"There are {seeds}{alone}.", *([nothing] if none else []), *left])


def cost_of(found: Found, checkpoint: Checkpoint) -> float:
    """Images until a checkpoint, see ``Plan.costs``."""
    return found.costs[min(checkpoint.generation, len(found.costs) - 1)]


def level_with_best(checkpoints: Sequence[Checkpoint]) -> Checkpoint:
    """First checkpoint whose interval reaches the mean gain of the best one."""
    best = max(checkpoint.difference.mean for checkpoint in checkpoints)
    return next(c for c in checkpoints if c.difference.high >= best)


def images_to_level(found: Found) -> float:
    """Images until a search was level with its best checkpoint."""
    return cost_of(found, level_with_best(found.search.checkpoints))


def _curve(own: Sequence[Found]) -> list[tuple[float, Figure]]:
    """Mean gain over searches at each checkpoint that all of them have."""
    count = min(len(found.search.checkpoints) for found in own)
    points = []
    for i in range(count):
        checkpoints = [found.search.checkpoints[i] for found in own]
        gains = [checkpoint.difference.mean for checkpoint in checkpoints]
        figure = checkpoints[0].difference if len(own) == 1 else over_searches(gains)
        points.append((cost_of(own[0], checkpoints[0]), figure))
    return points


def over_searches(values: Sequence[float] | Vector) -> Figure:
    """Mean of a number of each search, with its interval where there are several."""
    if len(values) > 1:
        return crossed_mean(np.asarray(values)[None])
    (value,) = values
    return Figure(mean=value, low=value, high=value, n=1)


def every(claims: Iterable[bool | None]) -> bool | None:
    """Whether all of some claims are true: False where one is not, None where that is not sure."""
    known = list(claims)
    if False in known:
        return False
    return None if None in known else True


def surely(difference: Figure) -> bool | None:
    """Whether a difference is above 0: True or False where that is sure, else None."""
    if difference.n < 2:
        return None
    if difference.low > 0:
        return True
    return False if difference.high < 0 else None


def judged(*claims: bool | None) -> Answer:
    """Say what becomes of a claim with several parts: each true, false, or not decided."""
    if all(claims):
        return "confirmed"
    if any(claims):
        return "confirmed in part"
    return "not confirmed" if False in claims else "not decidable"
