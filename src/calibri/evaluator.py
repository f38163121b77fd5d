"""Score candidates on (prompt, seed) pairs, unit by unit.

A unit mixes rows of several candidates in one batch and is the grain of the journal: a unit found
there is never computed again, so an interrupted run and an undisturbed one end the same.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calibri.coefficients import Coefficients
from calibri.config import OnFailure
from calibri.errors import RewardError, RunError
from calibri.sampling import Noise, Sampler
from calibri.scaling import Scaler

Scores = NDArray[np.float64]
# From images (uint8, N x 3 x H x W) and N prompts to one row of numbers per image.
Measure = Callable[[Tensor, Sequence[str]], Tensor]
Row = tuple[int, Noise]


@dataclass(frozen=True)
class Grouped:
    """A measure that compares the images of a prompt: it is given one candidate's at a time."""

    measure: Measure

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Measure the images of one candidate."""
        return self.measure(images, prompts)


class Records(Protocol):
    """What the ledger needs of a journal."""

    @property
    def records(self) -> Sequence[Mapping[str, Any]]:
        """Everything appended so far."""
        ...

    def append(self, record: Mapping[str, Any]) -> None:
        """Keep a record durably."""
        ...


class MemoryRecords:
    """Records that are not kept: for work that is not part of a run."""

    def __init__(self) -> None:
        self.records: list[Mapping[str, Any]] = []

    def append(self, record: Mapping[str, Any]) -> None:
        """Keep a record until the process ends."""
        self.records.append(record)


class Ledger:
    """Finished units by (phase, step, unit), kept in a journal."""

    def __init__(self, journal: Records) -> None:
        self._journal = journal
        self._units = {
            (r["phase"], r["step"], r["unit"]): r for r in journal.records if r["kind"] == "unit"
        }

    def find(self, key: tuple[str, int, int], digest: str) -> Mapping[str, Any] | None:
        """Return a finished unit, or None when it must be computed.

        Raises:
            RunError: the journal holds another unit under this key.
        """
        record = self._units.get(key)
        if record is not None and record["digest"] != digest:
            raise RunError(
                f"The journal's unit {key} was made for other candidates, prompts or settings. "
                "This run was started by another version of Calibri or of its libraries, or its "
                "configuration was edited. Start a new run."
            )
        return record

    def add(self, key: tuple[str, int, int], record: Mapping[str, Any]) -> None:
        """Keep a finished unit."""
        phase, step, unit = key
        entry = {"kind": "unit", "phase": phase, "step": step, "unit": unit, **record}
        self._journal.append(entry)
        self._units[key] = entry


class Evaluator:
    """Scores candidates through one pipeline.

    Args:
        sampler: samples images.
        scaler: hooks of the sampler's transformer.
        ledger: finished units.
        on_unit: called after every unit with the number of its images and whether it was new.
        on_failure: what a score that is not finite leads to, see ``RewardConfig``.

    Attributes:
        images: images scored so far.
        seconds: time that they took, interruptions excluded.
        dropped: (prompt, seed) pairs left out so far because a score failed.
    """

    def __init__(
        self,
        sampler: Sampler,
        scaler: Scaler,
        ledger: Ledger,
        on_unit: Callable[[int, bool], None] = lambda images, new: None,
        on_failure: OnFailure = "retry",
    ) -> None:
        self._sampler = sampler
        self._scaler = scaler
        self._ledger = ledger
        self._on_unit = on_unit
        self._on_failure = on_failure
        self._branches: tuple[int, ...] = (0,)
        self.images = 0
        self.seconds = 0.0
        self.dropped = 0

    def score(
        self,
        phase: str,
        step: int,
        candidates: Sequence[Coefficients],
        noises: Sequence[Noise],
        measures: Mapping[str, Measure],
        num_inference_steps: int | None = None,
    ) -> dict[str, Scores]:
        """Sample every candidate on every noise and measure the images.

        Args:
            phase: part of the run, for the journal.
            step: generation or number within the phase.
            candidates: coefficients of one search space; all see the same prompts and noise.
            noises: (prompt, seed) pairs; the images of one prompt stay in one unit when they are
                neighbours here and fit into one.
            measures: name to measure.
            num_inference_steps: other steps than the configured ones.

        Returns:
            For each measure, float64 (candidates, noises) or (candidates, noises, D). The columns
            of noises that were dropped are NaN, for all candidates and measures alike.

        Raises:
            RewardError: a measure returned a number that is not finite, and the policy is not to
                drop it or nothing would be left.
        """
        (self._branches,) = {candidate.member_branches for candidate in candidates}
        rows = [(c, noise) for c in range(len(candidates)) for noise in noises]
        scales = [self._site_scales(candidate) for candidate in candidates]
        parts: dict[str, list[Scores]] = {name: [] for name in measures}
        for unit, batch in enumerate(_units(rows, self._sampler.config.batch_size)):
            steps = num_inference_steps or self._sampler.config.num_inference_steps
            digest = _digest(batch, scales, sorted(measures), steps)
            record = self._unit((phase, step, unit), digest, batch, scales, measures, steps)
            for name in measures:
                parts[name].append(_decode(record["scores"][name]))
        shape = (len(candidates), len(noises))
        joined = {name: np.concatenate(values) for name, values in parts.items()}
        tables = {name: v.reshape(*shape, *v.shape[1:]) for name, v in joined.items()}
        self.dropped += _drop_failed(tables)
        return tables

    def _site_scales(self, candidate: Coefficients) -> Tensor:
        return torch.from_numpy(candidate.site_scales(self._scaler.sites))

    def _unit(
        self,
        key: tuple[str, int, int],
        digest: str,
        rows: Sequence[Row],
        scales: Sequence[Tensor],
        measures: Mapping[str, Measure],
        steps: int,
    ) -> Mapping[str, Any]:
        record = self._ledger.find(key, digest)
        new = record is None
        if record is None:
            record = self._compute(digest, rows, scales, measures, steps)
            self._ledger.add(key, record)
        self.images += len(rows)
        self.seconds += float(record["seconds"])
        self._on_unit(len(rows), new)
        return record

    def _compute(
        self,
        digest: str,
        rows: Sequence[Row],
        scales: Sequence[Tensor],
        measures: Mapping[str, Measure],
        steps: int,
    ) -> dict[str, Any]:
        started = time.perf_counter()
        values = self._measured(rows, scales, measures, steps)
        again = _rows_to_retry(rows, values) if self._on_failure == "retry" else []
        if again:
            fresh = self._measured([rows[i] for i in again], scales, measures, steps)
            index = torch.tensor(again)
            values = {name: v.index_copy(0, index, fresh[name]) for name, v in values.items()}
        if self._on_failure != "drop":
            for name, scores in values.items():
                _check_finite(name, scores, rows)
        return {
            "digest": digest,
            "scores": {name: _encode(scores) for name, scores in values.items()},
            "seconds": time.perf_counter() - started,
        }

    def _measured(
        self,
        rows: Sequence[Row],
        scales: Sequence[Tensor],
        measures: Mapping[str, Measure],
        steps: int,
    ) -> dict[str, Tensor]:
        self._scaler.set(torch.stack([scales[candidate] for candidate, _ in rows]), self._branches)
        images = self._sampler.sample([noise for _, noise in rows], steps)
        return {name: _apply(measure, images, rows) for name, measure in measures.items()}


def _units(rows: Sequence[Row], size: int) -> list[list[Row]]:
    """Cut rows into units of at most ``size``, not through the images of a prompt if they fit."""
    units: list[list[Row]] = [[]]
    for _, members in itertools.groupby(rows, key=lambda row: (row[0], row[1].prompt.id)):
        group = list(members)
        if units[-1] and len(units[-1]) + len(group) > size:
            units.append([])
        units[-1] += group
        while len(units[-1]) > size:
            units[-1:] = [units[-1][:size], units[-1][size:]]
    return units


def _apply(measure: Measure, images: Tensor, rows: Sequence[Row]) -> Tensor:
    prompts = [noise.prompt.text for _, noise in rows]
    if not isinstance(measure, Grouped):
        return measure(images, prompts)
    parts = []
    for _, members in itertools.groupby(range(len(rows)), key=lambda i: rows[i][0]):
        group = list(members)
        parts.append(measure(images[group], [prompts[i] for i in group]))
    return torch.cat(parts)


def _failed(scores: Tensor) -> Tensor:
    return ~torch.isfinite(scores.reshape(len(scores), -1)).all(dim=1)


def _rows_to_retry(rows: Sequence[Row], values: Mapping[str, Tensor]) -> list[int]:
    """Rows that failed, with all images of their prompt: a grouped measure needs them together."""
    failed = {i for scores in values.values() for i in _failed(scores).nonzero().flatten().tolist()}
    groups = {(rows[i][0], rows[i][1].prompt.id) for i in failed}
    return [i for i, (c, noise) in enumerate(rows) if (c, noise.prompt.id) in groups]


def _drop_failed(tables: Mapping[str, Scores]) -> int:
    """Blank every noise that failed for any candidate, so that no candidate gains by it.

    Raises:
        RewardError: no noise would be left.
    """
    finite = np.stack([np.isfinite(v).reshape(*v.shape[:2], -1).all(2) for v in tables.values()])
    columns = np.asarray(~finite.all(axis=(0, 1)))
    if columns.all():
        raise RewardError(
            f"Each of the {len(columns)} (prompt, seed) pairs was dropped: some image of every one "
            "of them could not be scored. Check the reward and the pipeline."
        )
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


def _digest(rows: Sequence[Row], scales: Sequence[Tensor], names: list[str], steps: int) -> str:
    candidates = {c: hashlib.sha256(scales[c].numpy().tobytes()).hexdigest() for c, _ in rows}
    content = [[candidates[c], noise.prompt.id, noise.seed] for c, noise in rows]
    return hashlib.sha256(json.dumps([content, names, steps]).encode()).hexdigest()[:16]


def _check_finite(name: str, scores: Tensor, rows: Sequence[Row]) -> None:
    bad = _failed(scores).nonzero().flatten()
    if len(bad):
        first = int(bad[0])
        raise RewardError(
            f"Reward '{name}' returned {scores[first].tolist()} for the prompt "
            f"'{rows[first][1].prompt.text}' ({len(bad)} of {len(rows)} images failed). A score "
            "must be a finite number. Everything before this is kept; fix the reward and resume "
            "the run."
        )


def _encode(scores: Tensor) -> Any:
    if scores.ndim == 1:
        return [score if math.isfinite(score) else None for score in map(float, scores)]
    # Feature vectors are many and need no more than half precision.
    data = scores.to(torch.float16).cpu().numpy()
    return {"float16": base64.b64encode(data.tobytes()).decode(), "shape": list(data.shape)}


def _decode(stored: Any) -> Scores:
    if isinstance(stored, list):  # None is a failed image: JSON has no NaN
        return np.array([np.nan if score is None else score for score in stored])
    data = np.frombuffer(base64.b64decode(stored["float16"]), dtype=np.float16)
    return np.asarray(data.reshape(stored["shape"]), dtype=np.float64)
