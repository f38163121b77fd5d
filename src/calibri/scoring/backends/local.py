"""Compute units in this process: sample, measure, try again what failed."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from calibri.config import OnFailure
from calibri.errors import RewardError, RunError
from calibri.sampling import Sampler, Scaler
from calibri.scoring.device_swap import PIPELINE, REWARDS, Residence, in_turns
from calibri.scoring.units import Measure, Row, Scored, Unit, encode


@dataclass(frozen=True)
class Grouped:
    """A measure that compares the images of a prompt: it is given one candidate's at a time."""

    measure: Measure

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Measure the images of one candidate."""
        return self.measure(images, prompts)


class InProcess:
    """Computes units through one pipeline.

    Args:
        sampler: samples images.
        scaler: hooks of the sampler's transformer.
        on_failure: what a score that is not finite leads to, see ``RewardConfig``.
        overlap: measure a unit in a thread, on a CUDA stream of its own, while the next one is
            sampled; pays on a GPU, where sampling leaves the host idle.
        residence: when the pipeline and the rewards take turns on the device; then many images are
            sampled before they are scored, and nothing overlaps.
    """

    def __init__(
        self,
        sampler: Sampler,
        scaler: Scaler,
        on_failure: OnFailure,
        overlap: bool = False,
        residence: Residence | None = None,
    ) -> None:
        self._sampler = sampler
        self._scaler = scaler
        self._on_failure = on_failure
        self._residence = residence
        self._rows_at_once: int | None = None
        self._measuring = ThreadPoolExecutor(1, "measuring") if overlap else None

    def run(
        self, units: Iterable[tuple[int, Unit]], measures: Mapping[str, Measure]
    ) -> Iterator[tuple[int, Scored]]:
        """Yield the index of a unit and its scores in the order of the units.

        Raises:
            RewardError: a measure returned a number that is not finite, and the policy is not to
                drop it.
            RunError: one image alone does not fit into memory.
        """
        if self._residence is not None:
            return self._in_turns(self._residence, units, measures)
        if self._measuring is not None:
            return self._overlapped(self._measuring, units, measures)
        return self._one_by_one(units, measures)

    def _one_by_one(
        self, units: Iterable[tuple[int, Unit]], measures: Mapping[str, Measure]
    ) -> Iterator[tuple[int, Scored]]:
        for index, unit in units:
            images = self.sample(unit, unit.rows)
            yield index, self._finish(unit, measures, _measured(images, unit.rows, measures))

    def _overlapped(
        self,
        thread: ThreadPoolExecutor,
        units: Iterable[tuple[int, Unit]],
        measures: Mapping[str, Measure],
    ) -> Iterator[tuple[int, Scored]]:
        waiting: list[tuple[int, Unit, Future[dict[str, Tensor]]]] = []

        def finished() -> Iterator[tuple[int, Scored]]:
            while waiting:
                index, unit, future = waiting.pop()
                yield index, self._finish(unit, measures, future.result())

        for index, unit in units:
            try:
                images = self.sample(unit, unit.rows)
            except BaseException:  # a fault or Ctrl-C: keep what was measured meanwhile
                yield from finished()
                raise
            future = thread.submit(_aside, images, unit.rows, measures)
            yield from finished()
            waiting.append((index, unit, future))
        yield from finished()

    def _in_turns(
        self,
        residence: Residence,
        units: Iterable[tuple[int, Unit]],
        measures: Mapping[str, Measure],
    ) -> Iterator[tuple[int, Scored]]:
        def sample(item: tuple[int, Unit]) -> Tensor:
            return self.sample(item[1], item[1].rows).cpu()

        def score(item: tuple[int, Unit], images: Tensor) -> tuple[int, Scored]:
            index, unit = item
            return index, self._finish(unit, measures, _measured(images, unit.rows, measures))

        steps = (PIPELINE, sample), (REWARDS, score)
        yield from in_turns(residence, units, *steps, size=lambda item: len(item[1].rows))

    def close(self) -> None:
        """End the measuring thread."""
        if self._measuring is not None:
            self._measuring.shutdown()

    def _finish(
        self, unit: Unit, measures: Mapping[str, Measure], values: dict[str, Tensor]
    ) -> Scored:
        again = _rows_to_retry(unit.rows, values) if self._on_failure == "retry" else []
        if again:
            rows = [unit.rows[i] for i in again]
            self._turn(PIPELINE)
            images = self.sample(unit, rows)
            self._turn(REWARDS)
            fresh = self._measured_again(images, rows, measures)
            index = torch.tensor(again)
            values = {name: v.index_copy(0, index, fresh[name]) for name, v in values.items()}
        if self._on_failure != "drop":
            for name, scores in values.items():
                _check_finite(name, scores, unit.rows)
        return {name: encode(scores) for name, scores in values.items()}

    def _measured_again(
        self, images: Tensor, rows: Sequence[Row], measures: Mapping[str, Measure]
    ) -> dict[str, Tensor]:
        # Rewards remember prompts and batch sizes: two threads must not score at once.
        if self._measuring is None:
            return _measured(images, rows, measures)
        return self._measuring.submit(_aside, images, rows, measures).result()

    def _turn(self, name: str) -> None:
        if self._residence is not None:
            self._residence.use(name)

    def sample(self, unit: Unit, rows: Sequence[Row]) -> Tensor:
        """Sample rows of a unit, fewer at once from now on when they do not fit into memory.

        Raises:
            RunError: one image alone does not fit.
        """
        prompts = [noise.prompt for _, noise in rows]
        self._sampler.prepare(prompts, unit.fidelity.max_sequence_length)
        size = min(self._rows_at_once or len(rows), len(rows))
        try:
            return torch.cat([self._batch(unit, batch) for batch in _batches(unit, rows, size)])
        except torch.OutOfMemoryError as error:
            if size == 1:
                raise RunError(
                    "One image alone does not fit into the memory of the device. Everything "
                    "before this is kept. Lower sampling.height and width, use "
                    "dtype=bfloat16, or free the device, and resume the run."
                ) from error
        # Outside the handler, whose traceback holds the tensors that did not fit.
        self._rows_at_once = size // 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return self.sample(unit, rows)

    def _batch(self, unit: Unit, rows: Sequence[Row]) -> Tensor:
        """Sample rows that share a noise schedule."""
        sites = self._scaler.sites
        scales = [torch.from_numpy(c.site_scales(sites)) for c in unit.candidates]
        branches = unit.candidates[0].member_branches
        guidance = torch.tensor([unit.candidates[candidate].guidance for candidate, _ in rows])
        table = torch.stack([scales[candidate] for candidate, _ in rows])
        self._scaler.set(table, branches, guidance)
        shift = unit.candidates[rows[0][0]].shift
        return self._sampler.sample([noise for _, noise in rows], unit.fidelity, shift)


def _batches(unit: Unit, rows: Sequence[Row], size: int) -> Iterator[Sequence[Row]]:
    """Cut rows into batches of at most ``size`` whose candidates shift the schedule alike."""
    for _, members in itertools.groupby(rows, key=lambda row: unit.candidates[row[0]].shift):
        group = list(members)
        yield from (group[first : first + size] for first in range(0, len(group), size))


def _aside(
    images: Tensor, rows: Sequence[Row], measures: Mapping[str, Measure]
) -> dict[str, Tensor]:
    """Measure on a stream of its own, so that the next unit's kernels need not wait."""
    if not torch.cuda.is_available():
        return _measured(images, rows, measures)
    stream: torch.cuda.Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        values = _measured(images, rows, measures)
    stream.synchronize()
    return values


def _measured(
    images: Tensor, rows: Sequence[Row], measures: Mapping[str, Measure]
) -> dict[str, Tensor]:
    return {name: _apply(measure, images, rows) for name, measure in measures.items()}


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
