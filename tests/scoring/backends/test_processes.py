"""Units computed by several processes: the same scores, whatever becomes of the processes."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import psutil
import pytest
import torch

from calibri.config import RunConfig, load_config, validate_config
from calibri.errors import ConfigError, RewardError, RunError
from calibri.pipelines.loading import load_pipeline
from calibri.prompts.files import make_prompts
from calibri.prompts.sources import PromptSets
from calibri.results import Fidelity
from calibri.runs.calibrate import calibrate
from calibri.runs.journal import Journal
from calibri.runs.session import Session
from calibri.sampling.sampler import Noise
from calibri.scoring.backends.choice import choose_pool
from calibri.scoring.backends.executors import Overlapped
from calibri.scoring.backends.local import Local
from calibri.scoring.backends.processes import (
    Worker,
    Workers,
    cores,
    default_workers,
    result_of,
    worker_command,
    worker_devices,
)
from calibri.scoring.backends.worker import serve
from calibri.scoring.evaluator import Evaluator, sample_images
from calibri.scoring.ledger import Ledger, MemoryRecords
from calibri.scoring.units import Unit, cut, make_unit
from tests.fakes import Idle, LittleMemory, bench_of, brightness

NOISES = [
    Noise(prompt, 5 + i)
    for i, prompt in enumerate(make_prompts(["a red circle", "a blue square", "a green cross"]))
]


def configured(workers: int, **rewards) -> RunConfig:
    return validate_config(
        {
            "device": "cpu",
            "sampling": {"num_inference_steps": 2, "batch_size": 2, "workers": workers},
            "rewards": {"held_out": ["shapes-judge"]} | rewards,
        }
    )


@pytest.fixture(scope="module")
def session():
    return Session(configured(1), PromptSets((), (), ()))


@pytest.fixture
def pool(session):
    made = Workers(Local(session.bench), [Worker(configured(2), "cpu", 1)], 1)
    yield made
    made.close()


@pytest.fixture
def elsewhere():
    """Workers of which this process computes nothing."""
    made = Workers(Idle(), [Worker(configured(2), "cpu", 1)], 1)
    yield made
    made.close()


@pytest.fixture(scope="module")
def candidates(session):
    rng = np.random.default_rng(0)
    size = session.space.size
    return [
        session.space.coefficients(session.space.start + 0.2 * rng.normal(size=size))
        for _ in range(8)
    ]


def at(steps, **fidelity):
    return Fidelity(num_inference_steps=steps, **fidelity)


def units_of(candidates, steps=2):
    rows = [(c, noise) for c in range(len(candidates)) for noise in NOISES]
    names = ("shapes", "diversity", "features")
    return list(enumerate(make_unit(candidates, part, names, at(steps)) for part in cut(rows, 2)))


CHEAPER = ("height", "width", "max_sequence_length", "cache_interval")


def test_a_unit_is_read_back_with_every_bit(candidates):
    cheap = at(3, **dict(zip(CHEAPER, (16, 24, 8, 2), strict=True)))
    units = [*units_of(candidates), (0, make_unit(candidates, [(0, NOISES[0])], ("a",), cheap))]
    for _, unit in units:
        again = Unit.from_json(json.loads(json.dumps(unit.to_json())))
        assert again == unit
        assert again.digest == unit.digest


def test_the_digest_depends_on_everything_but_the_order_of_measures(candidates):
    rows = [(0, NOISES[0]), (1, NOISES[1])]
    unit = make_unit(candidates, rows, ("a", "b"), at(2))
    others = [
        make_unit(candidates[1:], rows, ("a", "b"), at(2)),
        make_unit(candidates, rows[:1], ("a", "b"), at(2)),
        make_unit(candidates, [(0, NOISES[0]), (1, NOISES[2])], ("a", "b"), at(2)),
        make_unit(candidates, rows, ("a",), at(2)),
        make_unit(candidates, rows, ("a", "b"), at(3)),
        *[make_unit(candidates, rows, ("a", "b"), at(2, **{name: 2})) for name in CHEAPER],
    ]
    assert make_unit(candidates, rows, ("b", "a"), at(2)).digest == unit.digest
    assert unit.digest not in {other.digest for other in others}


@pytest.mark.slow
def test_processes_give_the_scores_of_one(session, candidates, pool, elsewhere):
    plain = units_of(candidates)
    rows = plain[0][1].rows
    cached = make_unit(candidates, rows, plain[0][1].measures, at(4, cache_interval=2))
    # A worker that was told of a cache has forgotten it with the next unit.
    units = [(-1, cached), *plain, (len(plain), cached)]
    alone = dict(Local(session.bench).run(units))
    assert {i: alone[i] for i, _ in plain} == dict(Local(session.bench).run(plain))
    assert dict(pool.run(units)) == alone
    assert dict(elsewhere.run(units)) == alone


def children():
    return {child.pid for child in psutil.Process().children()}


@pytest.mark.slow
def test_a_killed_worker_is_started_again_and_nothing_is_lost(session, candidates):
    units = units_of(candidates)
    alone = dict(Local(session.bench).run(units))
    before, killed = children(), set()
    pool = Workers(Idle(), [Worker(configured(2), "cpu", 1)], 1)
    found = {}
    for index, scores in pool.run(units):
        if len(found) in (1, 5):
            (pid,) = children() - before
            os.kill(pid, signal.SIGKILL)
            killed.add(pid)
        found[index] = scores
    pool.close()
    assert found == alone
    assert len(killed) == 2


@pytest.mark.slow
def test_a_unit_that_kills_every_worker_ends_the_run_in_words(session, candidates, monkeypatch):
    monkeypatch.setattr(sys, "executable", "false")
    pool = Workers(Idle(), [Worker(configured(2), "cpu", 1)], 1)
    with pytest.raises(RunError, match="died 3 times .* exit code 1"):
        dict(pool.run(units_of(candidates)))
    pool.close()


@pytest.mark.slow
def test_what_a_worker_refuses_is_raised_here_after_the_others_are_finished(session, candidates):
    config = configured(2, objective="missing", held_out=[])
    pool = Workers(Local(session.bench), [Worker(config, "cpu", 1)], 1)
    found = []
    with pytest.raises(RewardError, match="no reward 'missing'"):
        found.extend(pool.run(units_of(candidates * 200)))
    pool.close()
    assert 0 < len(found) < len(units_of(candidates * 200))


def test_a_worker_that_cannot_be_started_ends_the_run_at_once(candidates, monkeypatch):
    monkeypatch.setattr(sys, "executable", "false")
    pool = Workers(Idle(), [Worker(configured(2), "cpu", 1)], 1)
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(RunError, match="cannot be used: FileNotFoundError"):
        dict(pool.run(units_of(candidates)))
    pool.close()


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (RewardError("no weights"), "no weights"),
        (torch.OutOfMemoryError("CUDA out of memory"), "do not fit on 'cpu': CUDA out of memory"),
    ],
)
def test_a_worker_that_cannot_load_tries_once_and_says_why(candidates, error, says):
    tries = []

    def load(config):
        tries.append(config)
        raise error

    unit = json.dumps(units_of(candidates)[0][1].to_json())
    greeting = json.dumps({"config": configured(1).model_dump(mode="json"), "threads": 1})
    answers = io.BytesIO()
    serve(io.BytesIO("\n".join([greeting, unit, unit]).encode()), answers, load)
    found = [json.loads(line) for line in answers.getvalue().splitlines()]
    assert len(tries) == 1
    assert len(found) == 2
    assert all(says in answer["message"] for answer in found)


def test_an_error_of_a_class_that_only_the_worker_knows_is_told():
    with pytest.raises(RunError, match="what it said"):
        result_of({"error": "OfAnotherPackage", "message": "what it said"})


def test_what_others_have_finished_is_kept_when_this_process_stops(candidates):
    given = threading.Event()

    class Quick:
        def compute(self, unit):
            if given.is_set():
                time.sleep(60)
            given.set()
            return {"scores": {"shapes": [1.0]}}

        def stop(self):
            pass

    class Interrupted(Idle):
        def run(self, units):
            given.wait()
            time.sleep(0.2)
            raise KeyboardInterrupt
            yield

    pool = Workers(Interrupted(), [Quick()], 1)
    found = []
    with pytest.raises(KeyboardInterrupt):
        found.extend(pool.run(units_of(candidates)))
    assert [result for _, result in found] == [{"scores": {"shapes": [1.0]}}]


PRINTING = """
import sys
for line in sys.stdin:
    print('x' * 10000, file=sys.stderr, flush=True)
    if 'farewell' in line:
        sys.exit('the reason')
    if 'one more' in line:
        print('{"result": {}}', flush=True)
"""


def test_what_a_worker_says_is_forgotten_with_its_answer_and_told_with_its_death(
    monkeypatch, tmp_path
):
    script = tmp_path / "worker.py"
    script.write_text(PRINTING)
    script.with_name("python").write_text(f"#!/bin/sh\nexec {sys.executable} {script}\n")
    script.with_name("python").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script.with_name("python")))

    class Saying:
        rows = ()

        def __init__(self, text):
            self.text = text

        def to_json(self):
            return {self.text: 1}

    worker = Worker(configured(1), "cpu", 1)
    for _ in range(20):
        assert worker.compute(Saying("one more")) == {}
    assert os.fstat(worker.said.fileno()).st_size <= 10001
    with pytest.raises(RunError, match="saying: the reason"):
        worker.compute(Saying("farewell"))
    worker.stop()
    with pytest.raises(RunError, match="were stopped"):
        worker.compute(Saying("one more"))


def test_workers_import_from_where_this_process_does(monkeypatch, tmp_path):
    (tmp_path / "yaml.py").write_text("raise SystemExit('a file of the working directory')")
    monkeypatch.chdir(tmp_path)
    own = "from calibri.scoring.backends.worker"
    command = [part.replace(own, "import yaml #") for part in worker_command()]
    assert any("import yaml" in part for part in command)
    assert subprocess.run(command, capture_output=True).returncode == 0


def test_a_worker_that_fails_is_given_no_other_unit(candidates):
    asked = []

    class Failing:
        def compute(self, unit):
            asked.append(unit)
            raise RunError("died")

        def stop(self):
            pass

    pool = Workers(Idle(), [Failing()], 1)
    with pytest.raises(RunError, match="died"):
        dict(pool.run(units_of(candidates)))
    assert len(asked) == 1


@pytest.mark.slow
def test_a_run_of_two_workers_ends_as_one_of_one(tmp_path):
    def run(workers):
        config = load_config(
            values={
                "device": "cpu",
                "sampling.num_inference_steps": 2,
                "sampling.batch_size": 4,
                "sampling.workers": workers,
                "search.generations": 2,
                "search.popsize": 4,
                "search.bucket_size": 3,
                "search.num_validation_prompts": 5,
                "evaluation.num_prompts": 4,
                "evaluation.num_samples": 0,
            }
        )
        summary = calibrate(config, name=str(workers), runs=tmp_path)
        with Journal.open(tmp_path / str(workers) / "journal.jsonl") as journal:
            units = {
                (r["phase"], r["step"], r["unit"]): (r["digest"], json.dumps(r["scores"]))
                for r in journal.records
            }
            assert len(units) == len(journal.records)
        return summary, units

    (one, units), (two, same) = run(1), run(2)
    assert one.search.coefficients == two.search.coefficients
    assert one.evaluation.comparisons == two.evaluation.comparisons
    assert units == same


def test_a_worker_answers_units_in_order_and_leaves_when_its_input_ends(session, candidates):
    units = units_of(candidates[:2])
    greeting = {"config": configured(1).model_dump(mode="json"), "threads": 1}
    lines = [json.dumps(line) for line in (greeting, *(unit.to_json() for _, unit in units))]
    answers = io.BytesIO()
    serve(io.BytesIO("\n".join(lines).encode()), answers)
    alone = dict(Local(session.bench).run(units))
    found = [json.loads(line)["result"] for line in answers.getvalue().splitlines()]
    assert found == list(alone.values())


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


def test_one_thread_alone_measures_also_what_failed_at_first(candidates):
    threads = []

    def failing_at_first(images, prompts):
        threads.append(threading.current_thread().name)
        return torch.full((len(prompts),), 1.0 if len(threads) > 1 else torch.nan)

    bench = bench_of(load_pipeline("shapes", device="cpu"), {"m": failing_at_first})
    backend = Local(bench, Overlapped(bench))
    unit = make_unit(candidates, units_of(candidates)[0][1].rows, ("m",), at(2))
    ((_, result),) = backend.run([(0, unit)])
    backend.close()
    assert result == {"scores": {"m": [1.0, 1.0]}}
    assert {name.split("_")[0] for name in threads} == {"measuring"}
    assert len(threads) == 2


def test_a_unit_that_does_not_fit_is_halved_and_the_size_remembered(candidates):
    rows = [(c, noise) for c in range(4) for noise in NOISES[:2]]
    units = [(i, make_unit(candidates, rows, ("m",), at(2))) for i in range(2)]
    bench = bench_of(
        load_pipeline("shapes", device="cpu"), {"m": brightness}, sampling={"batch_size": 8}
    )
    expected = dict(Local(bench).run(units))
    bench.sampler = LittleMemory(bench.sampler, 3)
    found = dict(Local(bench).run(units))
    assert bench.sampler.sizes == [2] * 8
    for index in range(2):
        one, other = (result[index]["scores"]["m"] for result in (found, expected))
        np.testing.assert_allclose(one, other, rtol=0, atol=0.02)


def test_images_to_look_at_that_do_not_fit_are_sampled_in_smaller_batches(candidates):
    bench = bench_of(load_pipeline("shapes", device="cpu"))
    expected = sample_images(Local(bench), candidates[0], NOISES, at(2), 3)
    bench.sampler = LittleMemory(bench.sampler, 1)
    found = sample_images(Local(bench), candidates[0], NOISES, at(2), 3)
    assert bench.sampler.sizes == [1] * 3
    np.testing.assert_allclose(found, expected, atol=1)


def test_an_image_that_does_not_fit_ends_the_run_in_words(candidates):
    bench = bench_of(load_pipeline("shapes", device="cpu"), {"m": brightness})
    bench.sampler = LittleMemory(bench.sampler, 0)
    unit = make_unit(candidates, [(0, NOISES[0]), (1, NOISES[0])], ("m",), at(2))
    with pytest.raises(RunError, match="One image alone"):
        dict(Local(bench).run([(0, unit)]))


def test_small_models_get_a_process_for_each_core_and_others_one(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(4), raising=False)
    assert default_workers("cpu", 10**7, 10**5) == 4
    assert default_workers("cpu", 10**7, 100) == 1
    assert default_workers("cpu", 6 * 10**8, 10**5) == 1
    assert default_workers("cpu", 4 * 10**8, 10**5) == 2
    assert default_workers("cuda", 10**7, 10**5) == 1
    assert cores() >= 1


def test_workers_get_gpus_of_their_own_or_a_sentence(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert worker_devices("cpu", 3) == ["cpu"] * 3
    assert worker_devices("cuda", 2) == ["cuda:0", "cuda:1"]
    assert worker_devices("cuda:1", 1) == ["cuda:1"]
    assert worker_devices("cuda:1", 2) == ["cuda:1", "cuda:0"]
    with pytest.raises(ConfigError, match="torch sees 2"):
        worker_devices("cuda", 3)


def test_too_few_gpus_are_found_out_before_a_model_is_loaded(monkeypatch):
    monkeypatch.setattr(torch, "empty", lambda *size, device: None)  # as if the device were there
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    config = configured(3).model_copy(update={"device": "cuda", "pipeline": "./nowhere"})
    with pytest.raises(ConfigError, match="torch sees 2"):
        Session(config, PromptSets((), (), ()))


def test_an_evaluator_closes_its_backend():
    closed = []

    class Backend(Idle):
        def close(self):
            closed.append(True)

    with Evaluator(Backend(), 4, at(2), Ledger(MemoryRecords())):
        pass
    assert closed == [True]


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


@pytest.mark.parametrize("images", [10, 10**5])
def test_a_process_has_as_many_threads_whatever_the_number_of_workers(monkeypatch, images):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(4), raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    pools = [choose_pool("cpu", 10**7, images, workers) for workers in (1, 2, 3, None)]
    found = [(len(pool.devices), pool.threads) for pool in pools]
    # A run too short for workers keeps all threads, in this process when there is one worker.
    short = [(1, None), (2, 4), (3, 4), (1, None)]
    assert found == (short if images == 10 else [(1, 1), (2, 1), (3, 1), (4, 1)])
