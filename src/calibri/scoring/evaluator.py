"""Score candidates on (prompt, seed) pairs, unit by unit.

A unit mixes rows of several candidates in one batch and is the grain of the journal: a unit found
there is never computed again, so an interrupted run and an undisturbed one end the same, whatever
the number of workers. What will be asked for whatever happens until then can be computed before, by
workers that would idle: it is in the journal when it is asked for, and counted then.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calibri.arrays import Scores, Vector
from calibri.coefficients import Coefficients
from calibri.errors import NothingScoredError, RewardError
from calibri.results import FULL, Computed, Fidelity
from calibri.sampling import Noise
from calibri.scoring.ledger import Key, Ledger
from calibri.scoring.plain_json import decode, decode_exact, decode_images
from calibri.scoring.units import Backend, Unit, cut, make_unit

# Told of every finished unit: its images, and whether they are new.
OnUnit = Callable[[int, bool], None]


# Told how a unit was computed.
OnComputed = Callable[[Computed], None]


# Told what a person should know, in words.
OnMessage = Callable[[str], None]


class Asked(NamedTuple):
    """What scores are asked of an evaluator: the arguments of ``Evaluator.score``."""

    phase: str
    step: int
    candidates: Sequence[Coefficients]
    noises: Sequence[Noise]
    measures: Sequence[str]
    fidelity: Fidelity = FULL


def ignore(images: int, new: bool) -> None:
    """Do nothing when a unit is finished."""


class Evaluator:
    """Has candidates computed on a back-end, and keeps what comes of it.

    Args:
        backend: computes units.
        batch_size: images per unit.
        full: fidelity of images, where no other is asked for.
        ledger: finished units.
        on_unit: called after every unit with the number of its images and whether it was new.
        on_message: called when fewer images fit into memory than a unit has.
        on_computed: called after every new unit with who computed it and what went wrong.

    Attributes:
        batch_size: images that were computed at once where fewer fitted than ``batch_size``.
        images: images scored so far; one with its gradient is counted as three.
        seconds: time that they took, interruptions excluded.
        dropped: (prompt, seed) pairs left out so far because a score failed.
    """

    def __init__(
        self,
        backend: Backend,
        batch_size: int,
        full: Fidelity,
        ledger: Ledger,
        on_unit: OnUnit = ignore,
        on_message: OnMessage = lambda text: None,
        on_computed: OnComputed = lambda unit: None,
    ) -> None:
        self._backend = backend
        self._batch_size = batch_size
        self._full = full
        self._ledger = ledger
        self._on_unit = on_unit
        self._on_message = on_message
        self._on_computed = on_computed
        self.batch_size = batch_size
        self.images = 0
        self.seconds = 0.0
        self.dropped = 0
        self._ahead: dict[Key, Unit] = {}
        self._early: set[Key] = set()  # computed here, and not asked for yet

    def __enter__(self) -> Evaluator:
        return self

    def __exit__(self, *exc: object) -> None:
        self._backend.close()

    def score(
        self,
        phase: str,
        step: int,
        candidates: Sequence[Coefficients],
        noises: Sequence[Noise],
        measures: Sequence[str],
        fidelity: Fidelity = FULL,
    ) -> dict[str, Scores]:
        """Sample every candidate on every noise and measure the images.

        Args:
            phase: part of the run, for the journal.
            step: generation or number within the phase.
            candidates: coefficients of one search space; all see the same prompts and noise.
            noises: (prompt, seed) pairs; the images of one prompt stay in one unit when they are
                neighbours here and fit into one.
            measures: names of what is measured (``Measures``).
            fidelity: what differs from the full one.

        Returns:
            For each measure, float64 (candidates, noises) or (candidates, noises, D). The columns
            of noises that were dropped are NaN, for all candidates and measures alike.

        Raises:
            RewardError: a measure returned a number that is not finite, and the policy is not to
                drop it; ``NothingScoredError`` when it is, and nothing would be left.
        """
        asked = Asked(phase, step, candidates, noises, measures, fidelity)
        records = self._records(self._units(asked))
        joined = {
            name: np.concatenate([decode(record["scores"][name]) for record in records])
            for name in measures
        }
        shape = (len(candidates), len(noises))
        tables = {name: v.reshape(*shape, *v.shape[1:]) for name, v in joined.items()}
        dropped = _drop_failed(tables)
        self.dropped += dropped
        if dropped == len(noises):
            raise NothingScoredError(
                f"Each of the {dropped} (prompt, seed) pairs was dropped: some image of every one "
                "of them could not be scored. Check the reward and the pipeline."
            )
        return tables

    def expect(self, asked: Asked) -> None:
        """Say what ``score`` will be asked, so that workers that would idle compute it before.

        What is expected last comes first. Nothing depends on it but time: figures count images when
        they are asked for, and what fails before is tried again then.
        """
        units = self._units(asked)
        missing = {key: u for key, u in units.items() if self._ledger.find(key, u) is None}
        self._ahead = missing | self._ahead

    def _units(self, asked: Asked) -> dict[Key, Unit]:
        rows = [(c, noise) for c in range(len(asked.candidates)) for noise in asked.noises]
        parts = cut(rows, self._batch_size)
        fidelity = self._full.updated(asked.fidelity)
        return {
            (asked.phase, asked.step, i): make_unit(
                asked.candidates, part, asked.measures, fidelity
            )
            for i, part in enumerate(parts)
        }

    def differentiate(
        self,
        phase: str,
        step: int,
        candidate: Coefficients,
        noises: Sequence[Noise],
        measures: Sequence[str],
        last_steps: int | None = None,
    ) -> dict[str, tuple[Scores, NDArray[np.float64]]]:
        """Differentiate rewards with respect to the scales of a candidate.

        Args:
            phase: part of the run, for the journal.
            step: number within the phase.
            candidate: where.
            noises: (prompt, seed) pairs.
            measures: names of differentiable rewards.
            last_steps: steps of the sampler that carry a gradient, which bounds memory; None for
                all.

        Returns:
            For each measure, scores, float64 (noises,), NaN where one failed, and their gradients,
            float64 (noises, ...) with the shape of ``Coefficients.site_scales``, 0 where it failed.

        Raises:
            RewardError: a score or a gradient is not finite, and the policy is not to drop it.
        """
        parts = cut([(0, noise) for noise in noises], self._batch_size)
        units = {
            (phase, step, i): make_unit(
                [candidate], part, measures, self._full, "gradients", last_steps
            )
            for i, part in enumerate(parts)
        }
        records = self._records(units)
        return {
            name: (
                np.concatenate([decode(record["scores"][name]) for record in records]),
                np.concatenate([decode_exact(record["gradients"][name]) for record in records]),
            )
            for name in measures
        }

    def explore(
        self,
        phase: str,
        step: int,
        candidate: Coefficients,
        noises: Sequence[Noise],
        measure: str,
        noise_level: float,
    ) -> list[Mapping[str, Any]]:
        """Take policy gradients of a reward with respect to the scales of a candidate.

        Args:
            phase: part of the run, for the journal.
            step: number within the phase.
            candidate: where.
            noises: (prompt, seed) pairs, those of a prompt side by side.
            measure: name of a reward.
            noise_level: of the noise in each step.

        Returns:
            For each unit, name to ``"scores"`` of its rows and ``"gradients"`` summed over those
            that are finite, in the shape of ``Coefficients.site_scales``.

        Raises:
            RewardError: a score is not finite, and the policy is not to drop it.
        """
        parts = cut([(0, noise) for noise in noises], self._batch_size)
        units = {
            (phase, step, i): make_unit(
                [candidate], part, [measure], self._full, "policy", noise_level=noise_level
            )
            for i, part in enumerate(parts)
        }
        return self._records(units)

    def pin(self, name: str, step: int, vectors: Sequence[Vector]) -> list[Vector]:
        """Keep vectors before they are scored, or give those of the journal, see ``Ledger``."""
        return self._ledger.pin(name, step, vectors)

    def sample(
        self, candidate: Coefficients, noises: Sequence[Noise], fidelity: Fidelity = FULL
    ) -> Tensor:
        """Sample images to look at, which no journal keeps: uint8 (N, 3, H, W).

        Args:
            candidate: what they are sampled with.
            noises: (prompt, seed) pairs, one image each.
            fidelity: what differs from the full one.
        """
        return sample_images(
            self._backend, candidate, noises, self._full.updated(fidelity), self._batch_size
        )

    def _records(self, units: Mapping[Key, Unit]) -> list[Mapping[str, Any]]:
        """Find units in the ledger and compute the others."""
        found = {key: self._ledger.find(key, unit) for key, unit in units.items()}
        records = {key: record for key, record in found.items() if record is not None}
        for key, record in records.items():
            self._count(units[key], record, new=key in self._early)
        for key in units:
            self._ahead.pop(key, None)
        missing = {key: units[key] for key in units if key not in records}
        before = time.perf_counter()
        for key, result in self._backend.run(missing.items(), self._ahead.items()):
            now = time.perf_counter()
            records[key] = self._keep(key, missing, {**result, "seconds": now - before})
            before = now
        return [records[key] for key in units]

    def _keep(
        self, key: Key, asked: Mapping[Key, Unit], result: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        """Keep what came of a unit that was asked for, or of one ahead."""
        early = key not in asked
        unit = self._ahead.pop(key) if early else asked[key]
        record = {"digest": unit.digest, **result, "at": round(time.time(), 3)}
        record |= {"ahead": True} if early else {}
        self._ledger.add(key, record)
        if early:
            self._early.add(key)
        else:
            self._count(unit, record, new=True)
        self._on_computed(_computed(unit, record))
        return record

    def _count(self, unit: Unit, record: Mapping[str, Any], *, new: bool) -> None:
        self.images += unit.images
        self.seconds += float(record["seconds"])
        if record.get("batch_size", self.batch_size) < self.batch_size:
            self.batch_size = record["batch_size"]
            self._on_message(
                f"Only {self.batch_size} images fit into memory at once, not the "
                f"{self._batch_size} of sampling.batch_size. The run takes longer for it."
            )
        self._on_unit(unit.images, new)


def _computed(unit: Unit, record: Mapping[str, Any]) -> Computed:
    """Say what a record says of how it came about."""
    columns = [scores for scores in record["scores"].values() if isinstance(scores, list)]
    return Computed(
        worker=record.get("worker", ""),
        images=unit.images,
        failed=sum(None in row for row in zip(*columns, strict=True)),
        retries=record.get("attempts", 1) - 1 + record.get("retried", 0),
    )


def sample_images(
    backend: Backend,
    candidate: Coefficients,
    noises: Sequence[Noise],
    fidelity: Fidelity,
    batch_size: int,
) -> Tensor:
    """Have images sampled on a back-end: uint8 (N, 3, H, W), of videos (N, frames, 3, H, W).

    Args:
        backend: computes units.
        candidate: what they are sampled with.
        noises: (prompt, seed) pairs, one image each.
        fidelity: of the images, complete.
        batch_size: images per unit.
    """
    starts = range(0, len(noises), batch_size)
    parts = [[(0, noise) for noise in noises[first : first + batch_size]] for first in starts]
    units = [make_unit([candidate], part, (), fidelity, "images") for part in parts]
    results = dict(backend.run(enumerate(units)))
    return torch.cat([decode_images(results[i]["images"]) for i in range(len(units))])


def _drop_failed(tables: Mapping[str, Scores]) -> int:
    """Blank every noise that failed for any candidate, so that no candidate gains by it."""
    finite = np.stack([np.isfinite(v).reshape(*v.shape[:2], -1).all(2) for v in tables.values()])
    columns = np.asarray(~finite.all(axis=(0, 1)))
    for values in tables.values():
        values[:, columns] = np.nan
    return int(columns.sum())


def complete(*tables: Scores) -> list[Scores]:
    """Keep the prompts for which nothing was dropped in any of some paired tables.

    Args:
        tables: scores, (prompts,) or (prompts, images_per_prompt).

    Raises:
        RewardError: fewer than two prompts are left, too few for an interval.
    """
    keep = np.all([np.isfinite(t).reshape(len(t), -1).all(axis=1) for t in tables], axis=0)
    if keep.sum() < 2:
        raise RewardError(
            f"After dropping images that could not be scored, {int(keep.sum())} of {len(keep)} "
            "prompts are left; figures need at least 2. Check the reward and the pipeline."
        )
    return [table[keep] for table in tables]
