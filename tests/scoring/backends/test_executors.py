"""Sampling and measuring of units in one process, in turns or at once."""

import threading

import pytest
import torch

from calibri.prompts.sources import PromptSets
from calibri.runs.session import Session
from calibri.scoring.backends.executors import Overlapped
from calibri.scoring.backends.local import Local
from calibri.scoring.units import make_unit
from tests.fakes import bench_of
from tests.scoring.sample_units import NOISES, at, configured, units_of


def test_overlapped_measuring_gives_the_same_scores(session, candidates):
    units = units_of(candidates)
    alone = dict(Local(session.bench).run(units))
    backend = Local(session.bench, Overlapped(session.bench))
    assert dict(backend.run(units)) == alone
    backend.close()


def test_what_was_measured_while_sampling_stopped_is_kept(session, candidates):
    (first, second, *_) = units_of(candidates)

    class Stopping(Overlapped):
        def sample(self, unit, rows):
            if unit is second[1]:
                raise KeyboardInterrupt
            return super().sample(unit, rows)

    backend = Local(session.bench, Stopping(session.bench))
    found = []
    with pytest.raises(KeyboardInterrupt):
        found.extend(backend.run([first, second]))
    backend.close()
    assert found == list(Local(session.bench).run([first]))


def test_one_thread_alone_measures_also_what_failed_at_first(candidates, pipe):
    threads = []

    def failing_at_first(images, prompts):
        threads.append(threading.current_thread().name)
        return torch.full((len(prompts),), 1.0 if len(threads) > 1 else torch.nan)

    bench = bench_of(pipe, {"m": failing_at_first})
    backend = Local(bench, Overlapped(bench))
    unit = make_unit(candidates, units_of(candidates)[0][1].rows, ("m",), at(2))
    ((_, result),) = backend.run([(0, unit)])
    backend.close()
    assert result == {"scores": {"m": [1.0, 1.0]}, "retried": 2}
    assert {name.split("_")[0] for name in threads} == {"measuring"}
    assert len(threads) == 2


def test_alternating_many_images_are_sampled_before_any_is_scored(session, candidates):
    units = units_of(candidates)
    alone = dict(Local(session.bench).run(units))
    config = configured(1)
    config = config.model_copy(
        update={"rewards": config.rewards.model_copy(update={"offload": True})}
    )
    shared = Session(config, PromptSets((), (), ()))
    assert dict(Local(shared.bench).run(units)) == alone
    assert (shared.bench.swap.here, shared.bench.swap.moves) == ("rewards", 2)
    shared.sample(candidates[0], NOISES)
    assert (shared.bench.swap.here, shared.bench.swap.moves) == ("pipeline", 3)
