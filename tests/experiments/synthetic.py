"""A back-end that samples nothing: scores are a known function of scales, steps and noise."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch

from calibri.results import DIVERSITY, FEATURES
from calibri.scoring.plain_json import encode, encode_exact
from calibri.scoring.units import Result, Unit
from calibri.seeds import derive_seed

_SHARPNESS = 4.0


class Landscape:
    """Every reward is best where all scales are as it likes them, and a little better with steps.

    Args:
        bench: its sites are what is scaled.
        best: reward name to the scale that it likes; 1.2 where it is not named.
        noise: standard deviation of an image.
        by_steps: what a doubling of the steps brings.
    """

    def __init__(self, bench, best=None, noise=0.02, by_steps=0.05, diversity=None):
        self._sites = bench.scaler.sites
        self._steps = bench.config.sampling.num_inference_steps
        self._best = best or {}
        self._noise = noise
        self._by_steps = by_steps
        self._diversity = diversity or (lambda table: 0.2)

    def run(
        self, units: Iterable[tuple[int, Unit]], ahead: Iterable[tuple[int, Unit]] = ()
    ) -> Iterator[tuple[int, Result]]:
        for index, unit in units:
            yield index, self._scores(unit) if unit.kind == "scores" else self._gradients(unit)

    def close(self):
        pass

    def _tables(self, unit):
        return [np.asarray(c.site_scales(self._sites), dtype=float) for c in unit.candidates]

    def _scores(self, unit):
        tables = self._tables(unit)
        return {"scores": {name: self._column(name, unit, tables) for name in unit.measures}}

    def _column(self, name, unit, tables):
        rng = [np.random.default_rng(derive_seed(noise.seed, name)) for _, noise in unit.rows]
        if name == FEATURES:
            spread = [self._diversity(tables[c]) for c, _ in unit.rows]
            rows = [s * r.standard_normal(64) for s, r in zip(spread, rng, strict=True)]
            return encode(torch.tensor(np.stack(rows)))
        if name == DIVERSITY:
            return [float(self._diversity(tables[c])) for c, _ in unit.rows]
        steps = unit.fidelity.num_inference_steps or self._steps
        gained = self._by_steps * np.log2(steps / self._steps)
        return [
            float(self._value(name, tables[c]) + gained + self._noise * r.standard_normal())
            for (c, _), r in zip(unit.rows, rng, strict=True)
        ]

    def _value(self, name, table):
        return -_SHARPNESS * np.square(table - self._best.get(name, 1.2)).mean()

    def _gradients(self, unit):
        (table,) = self._tables(unit)
        slopes = {
            name: -2 * _SHARPNESS * (table - self._best.get(name, 1.2)) / table.size
            for name in unit.measures
        }
        give = self._of_each if unit.kind == "gradients" else self._in_all
        gradients = {name: give(slope, len(unit.rows)) for name, slope in slopes.items()}
        return {**self._scores(unit), "gradients": gradients}

    def _of_each(self, slope, count):
        return encode_exact(np.stack([slope] * count))

    def _in_all(self, slope, count):
        return (count * slope).tolist()
