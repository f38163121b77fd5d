"""B7 and B8: what the framework itself costs, and that batching and replay change nothing."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.machine import Row, Spread
from calibri.progress import Progress
from calibri.results import FEATURES
from calibri.runs import Session
from calibri.runs.journal import Journal
from calibri.runs.loop import ValidatedSearch
from calibri.scoring import Evaluator, Ledger, MemoryRecords
from calibri.scoring.ledger import Records
from calibri.scoring.plain_json import encode
from calibri.scoring.units import Index, Result, Unit
from calibri.seeds import derive_seed

_FEATURE_SIZE = 64  # of the image tower of the shipped judge


class Instant:
    """Scores a unit by its digest, without sampling anything."""

    def __init__(self) -> None:
        self.units = 0

    def run(
        self, units: Iterable[tuple[Index, Unit]], ahead: Iterable[tuple[Index, Unit]] = ()
    ) -> Iterator[tuple[Index, Result]]:
        for index, unit in units:
            self.units += 1
            rng = np.random.default_rng(derive_seed(0, unit.digest))
            rows = len(unit.rows)
            scores: dict[str, Any] = {
                name: rng.standard_normal(rows).tolist() for name in unit.measures
            }
            if FEATURES in unit.measures:
                features = rng.standard_normal((rows, _FEATURE_SIZE))
                scores[FEATURES] = encode(torch.from_numpy(features))
            yield index, {"scores": scores}

    def close(self) -> None:
        """Nothing is held."""


def _search(
    session: Session, records: Records, backend: Instant
) -> tuple[NDArray[np.float64], float]:
    """Run a whole search and time it."""
    sampling = session.config.sampling
    started = time.perf_counter()
    full = session.bench.sampler.full
    evaluator = Evaluator(backend, sampling.batch_size, full, Ledger(records))
    vector, _ = ValidatedSearch(session, evaluator, Progress()).run()
    return vector, time.perf_counter() - started


def flush_seconds(folder: Path, count: int = 20) -> float:
    """Median time in which this disk keeps one kilobyte durably."""
    times = []
    with (folder / "flush").open("ab", buffering=0) as file:
        for _ in range(count):
            started = time.perf_counter()
            file.write(b"x" * 1024)
            os.fsync(file.fileno())
            times.append(time.perf_counter() - started)
    return Spread(tuple(times)).median


def framework_time(session: Session, repeats: int) -> tuple[list[Row], dict[str, Any]]:
    """B7: everything but sampling and scoring, over a whole search, for each unit."""
    kept, in_memory = [], []
    with tempfile.TemporaryDirectory() as name:
        flush = flush_seconds(Path(name))
        for repeat in range(repeats):
            with Journal.open(Path(name) / f"journal-{repeat}") as journal:
                kept.append(_milliseconds(session, journal))
            in_memory.append(_milliseconds(session, MemoryRecords()))
    journalled, alone = Spread(tuple(kept)), Spread(tuple(in_memory))
    rows = [
        Row("B7", "framework time for each unit, journal included, ms", journalled.text(), "< 5"),
        Row("B7", "the same, journal in memory, ms", alone.text()),
        Row("B7", "time of this disk to keep 1 kB, ms", f"{1e3 * flush:.2f}", "3.3"),
    ]
    return rows, {
        "milliseconds_per_unit": journalled.values,
        "milliseconds_per_unit_in_memory": alone.values,
        "flush_milliseconds": 1e3 * flush,
    }


def _milliseconds(session: Session, records: Records) -> float:
    backend = Instant()
    _, spent = _search(session, records, backend)
    return 1e3 * spent / backend.units


def parity(session: Session, rows: int = 16) -> float:
    """Largest difference of the transformer's output: one batch of candidates, or one by one.

    In units of the largest output.
    """
    transformer, config = session.bench.pipe.transformer, session.bench.pipe.transformer.config
    generator = torch.Generator().manual_seed(0)
    size = config.sample_size
    noisy = torch.randn(rows, config.in_channels, size, size, generator=generator)
    text = torch.randn(rows, 12, config.joint_attention_dim, generator=generator)
    pooled = torch.randn(rows, config.pooled_projection_dim, generator=generator)
    scales = 1 + 0.25 * torch.randn(
        rows, 1, len(session.bench.scaler.sites) + 1, generator=generator
    )

    def forward(part: slice) -> torch.Tensor:
        session.bench.scaler.set(scales[part])
        output: torch.Tensor = transformer(
            hidden_states=noisy[part],
            encoder_hidden_states=text[part],
            pooled_projections=pooled[part],
            timestep=torch.full((len(noisy[part]),), 500.0),
            return_dict=False,
        )[0]
        return output

    with torch.no_grad():
        together = forward(slice(None))
        alone = torch.cat([forward(slice(i, i + 1)) for i in range(rows)])
    return float((together - alone).abs().max() / alone.abs().max())


def replay_is_exact(session: Session) -> bool:
    """Say whether a search repeated from its journal alone returns the same bits."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "journal"
        with Journal.open(path) as journal:
            first, _ = _search(session, journal, Instant())
        backend = Instant()
        with Journal.open(path) as journal:
            again, _ = _search(session, journal, backend)
    return backend.units == 0 and first.tobytes() == again.tobytes()


def invariance(session: Session) -> tuple[list[Row], dict[str, Any]]:
    """B8: what must not change."""
    difference, exact = parity(session), replay_is_exact(session)
    said = "identical" if exact else "DIFFERENT"
    rows = [
        Row("B8", "16 candidates in a batch or alone, relative", f"{difference:.1e}", "< 1e-5"),
        Row("B8", "search replayed from its journal", said, "identical"),
    ]
    return rows, {"relative": difference, "replay_identical": exact}
