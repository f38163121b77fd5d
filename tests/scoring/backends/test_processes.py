"""Units computed by several processes: the same scores, whatever becomes of the processes."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from calibri.config import RunConfig, load_config, validate_config
from calibri.errors import ConfigError, RewardError, RunError
from calibri.prompts.files import make_prompts
from calibri.results import Fidelity
from calibri.runs.calibrate import calibrate
from calibri.runs.journal import Journal
from calibri.runs.session import Engine, PromptSets
from calibri.runs.worker import serve
from calibri.sampling.sampler import Noise
from calibri.scoring.backends.processes import (
    Workers,
    _Worker,
    cores,
    default_workers,
    worker_devices,
)
from calibri.scoring.evaluator import Ledger, MemoryRecords
from calibri.scoring.units import Unit, cut, make_unit

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
def engine():
    return Engine(configured(1), PromptSets((), (), ()))


@pytest.fixture
def pool(engine):
    made = Workers(engine.in_process(), configured(2), ["cpu", "cpu"], 1)
    yield made
    made.close()


@pytest.fixture(scope="module")
def candidates(engine):
    rng = np.random.default_rng(0)
    size = engine.space.size
    return [
        engine.space.coefficients(engine.space.start + 0.2 * rng.normal(size=size))
        for _ in range(8)
    ]


def at(steps, **fidelity):
    return Fidelity(num_inference_steps=steps, **fidelity)


def units_of(candidates, steps=2):
    rows = [(c, noise) for c in range(len(candidates)) for noise in NOISES]
    names = ("shapes", "diversity", "features")
    return list(enumerate(make_unit(candidates, part, names, at(steps)) for part in cut(rows, 2)))


def measures(engine, names=("shapes", "diversity", "features")):
    return {name: engine.measure(name) for name in names}


class Watched:
    """Computes nothing here, so that every unit goes to another process."""

    def run(self, units, measures):
        return iter(())

    def close(self):
        pass


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
def test_processes_give_the_scores_of_one(engine, candidates, pool):
    plain = units_of(candidates)
    rows = plain[0][1].rows
    cached = make_unit(candidates, rows, plain[0][1].measures, at(4, cache_interval=2))
    # A worker that was told of a cache has forgotten it with the next unit.
    units = [(-1, cached), *plain, (len(plain), cached)]
    alone = dict(engine.in_process().run(units, measures(engine)))
    assert {i: alone[i] for i, _ in plain} == dict(engine.in_process().run(plain, measures(engine)))
    assert dict(pool.run(units, measures(engine))) == alone
    pool._here = Watched()
    assert dict(pool.run(units, measures(engine))) == alone


@pytest.mark.slow
def test_a_killed_worker_is_started_again_and_nothing_is_lost(engine, candidates, pool):
    units = units_of(candidates)
    alone = dict(engine.in_process().run(units, measures(engine)))
    pool._here, (first,) = Watched(), pool.pids
    found = {}
    for index, scores in pool.run(units, measures(engine)):
        if len(found) in (1, 5):
            os.kill(pool.pids[0], signal.SIGKILL)
        found[index] = scores
    assert found == alone
    assert pool.pids[0] != first


@pytest.mark.slow
def test_a_unit_that_kills_every_worker_ends_the_run_in_words(engine, candidates, monkeypatch):
    monkeypatch.setattr("calibri.scoring.backends.processes.sys.executable", "false")
    pool = Workers(Watched(), configured(2), ["cpu", "cpu"], 1)
    with pytest.raises(RunError, match="died 3 times .* exit code 1"):
        dict(pool.run(units_of(candidates), measures(engine)))
    pool.close()


@pytest.mark.slow
def test_what_a_worker_refuses_is_raised_here_after_the_others_are_finished(engine, candidates):
    config = configured(2, objective="missing", held_out=[])
    pool = Workers(engine.in_process(), config, ["cpu", "cpu"], 1)
    found = []
    with pytest.raises(RewardError, match="no reward 'missing'"):
        found.extend(pool.run(units_of(candidates * 200), measures(engine)))
    pool.close()
    assert 0 < len(found) < len(units_of(candidates * 200))


def test_a_worker_that_cannot_be_started_ends_the_run_at_once(candidates, monkeypatch):
    monkeypatch.setattr("calibri.scoring.backends.processes.sys.executable", "false")
    pool = Workers(Watched(), configured(2), ["cpu", "cpu"], 1)
    monkeypatch.setattr("calibri.scoring.backends.processes.sys.executable", "/nowhere/python")
    with pytest.raises(RunError, match="cannot be used: FileNotFoundError"):
        dict(pool.run(units_of(candidates), {}))
    pool.close()


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (RewardError("no weights"), "no weights"),
        (torch.OutOfMemoryError("CUDA out of memory"), "do not fit on 'cpu': CUDA out of memory"),
    ],
)
def test_a_worker_that_cannot_load_tries_once_and_says_why(candidates, monkeypatch, error, says):
    tries = []

    def load(config, prompts):
        tries.append(config)
        raise error

    monkeypatch.setattr("calibri.runs.worker.Engine", load)
    unit = json.dumps(units_of(candidates)[0][1].to_json())
    greeting = json.dumps({"config": configured(1).model_dump(mode="json"), "threads": 1})
    answers = io.BytesIO()
    serve(io.BytesIO("\n".join([greeting, unit, unit]).encode()), answers)
    found = [json.loads(line) for line in answers.getvalue().splitlines()]
    assert len(tries) == 1
    assert len(found) == 2
    assert all(says in answer["message"] for answer in found)


def test_an_error_of_a_class_that_only_the_worker_knows_is_told(candidates):
    speaking = _Worker.__new__(_Worker)
    speaking._write = lambda message: None
    speaking._read = lambda: {"error": "OfAnotherPackage", "message": "what it said"}
    speaking._forget_words = lambda: None
    with pytest.raises(RunError, match="what it said"):
        speaking.compute(units_of(candidates)[0][1])


def test_what_others_have_finished_is_kept_when_this_process_stops(candidates):
    given = threading.Event()

    class Quick:
        def compute(self, unit):
            if given.is_set():
                time.sleep(60)
            given.set()
            return {"shapes": [1.0]}

    class Interrupted(Watched):
        def run(self, units, measures):
            given.wait()
            time.sleep(0.2)
            raise KeyboardInterrupt
            yield

    pool = Workers(Interrupted(), configured(1), ["cpu"], 1)
    pool._others = [Quick()]
    found = []
    with pytest.raises(KeyboardInterrupt):
        found.extend(pool.run(units_of(candidates), {}))
    assert [scores for _, scores in found] == [{"shapes": [1.0]}]


PRINTING = """
import sys
for line in sys.stdin:
    print('x' * 10000, file=sys.stderr, flush=True)
    if 'farewell' in line:
        sys.exit('the reason')
    if 'one more' in line:
        print('{"scores": {}}', flush=True)
"""


def test_what_a_worker_says_is_forgotten_with_its_answer_and_told_with_its_death(
    monkeypatch, tmp_path
):
    script = tmp_path / "worker.py"
    script.write_text(PRINTING)
    script.with_name("python").write_text(f"#!/bin/sh\nexec {sys.executable} {script}\n")
    script.with_name("python").chmod(0o755)
    monkeypatch.setattr(
        "calibri.scoring.backends.processes.sys.executable", str(script.with_name("python"))
    )

    class Saying:
        rows = ()

        def __init__(self, text):
            self.text = text

        def to_json(self):
            return {self.text: 1}

    worker = _Worker(configured(1), "cpu", 1)
    for _ in range(20):
        assert worker.compute(Saying("one more")) == {}
    assert os.fstat(worker._said.fileno()).st_size <= 10001
    with pytest.raises(RunError, match="saying: the reason"):
        worker.compute(Saying("farewell"))
    worker.stop()
    with pytest.raises(RunError, match="were stopped"):
        worker._restart()


def test_workers_import_from_where_this_process_does(monkeypatch, tmp_path):
    (tmp_path / "yaml.py").write_text("raise SystemExit('a file of the working directory')")
    monkeypatch.chdir(tmp_path)
    worker = _Worker(configured(1), "cpu", 1)
    worker.stop()
    started = map(str, worker._process.args)
    command = [part.replace("from calibri.runs.worker", "import yaml #") for part in started]
    assert subprocess.run(command, capture_output=True).returncode == 0


def test_a_worker_that_fails_is_given_no_other_unit(candidates):
    asked = []

    class Failing:
        def compute(self, unit):
            asked.append(unit)
            raise RunError("died")

    pool = Workers(Watched(), configured(1), ["cpu"], 1)
    pool._others = [Failing()]
    with pytest.raises(RunError, match="died"):
        dict(pool.run(units_of(candidates), {}))
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
                "search.num_validation_prompts": 4,
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


def test_a_worker_answers_units_in_order_and_leaves_when_its_input_ends(engine, candidates):
    units = units_of(candidates[:2])
    greeting = {"config": configured(1).model_dump(mode="json"), "threads": 1}
    lines = [json.dumps(line) for line in (greeting, *(unit.to_json() for _, unit in units))]
    answers = io.BytesIO()
    serve(io.BytesIO("\n".join(lines).encode()), answers)
    alone = dict(engine.in_process().run(units, measures(engine)))
    found = [json.loads(line)["scores"] for line in answers.getvalue().splitlines()]
    assert found == list(alone.values())


def test_overlapped_measuring_gives_the_same_scores(engine, candidates):
    units = units_of(candidates)
    alone = dict(engine.in_process().run(units, measures(engine)))
    backend = engine.in_process()
    backend._measuring = ThreadPoolExecutor(1)
    assert dict(backend.run(units, measures(engine))) == alone
    backend.close()


def test_what_was_measured_while_sampling_stopped_is_kept(engine, candidates, monkeypatch):
    (first, second, *_) = units_of(candidates)
    backend = engine.in_process()
    backend._measuring = ThreadPoolExecutor(1)
    sample = backend.sample

    def stopping(unit, rows):
        if unit is second[1]:
            raise KeyboardInterrupt
        return sample(unit, rows)

    monkeypatch.setattr(backend, "sample", stopping)
    found = []
    with pytest.raises(KeyboardInterrupt):
        found.extend(backend.run([first, second], measures(engine)))
    backend.close()
    assert found == list(engine.in_process().run([first], measures(engine)))


def test_one_thread_alone_measures_also_what_failed_at_first(engine, candidates):
    threads = []

    def failing_at_first(images, prompts):
        threads.append(threading.current_thread().name)
        return torch.full((len(prompts),), 1.0 if len(threads) > 1 else torch.nan)

    backend = engine.in_process()
    backend._measuring = ThreadPoolExecutor(1, "measuring")
    ((_, scores),) = backend.run([(0, units_of(candidates)[0][1])], {"m": failing_at_first})
    backend.close()
    assert scores == {"m": [1.0, 1.0]}
    assert {name.split("_")[0] for name in threads} == {"measuring"}
    assert len(threads) == 2


class Full:
    """A sampler whose device holds so many images at once."""

    def __init__(self, sampler, most):
        self.sampler, self.most, self.sizes = sampler, most, []
        self.config, self.full, self.prepare = sampler.config, sampler.full, sampler.prepare

    def sample(self, noises, fidelity, shift):
        if len(noises) > self.most:
            raise torch.OutOfMemoryError("full")
        self.sizes.append(len(noises))
        return self.sampler.sample(noises, fidelity, shift)


def test_a_unit_that_does_not_fit_is_halved_and_the_size_remembered(engine, candidates):
    rows = [(c, noise) for c in range(4) for noise in NOISES[:2]]
    units = [(i, make_unit(candidates, rows, ("shapes",), at(2))) for i in range(2)]
    expected = dict(engine.in_process().run(units, measures(engine, ["shapes"])))
    backend = engine.in_process()
    backend._sampler = Full(engine.sampler, 3)
    found = dict(backend.run(units, measures(engine, ["shapes"])))
    assert backend._sampler.sizes == [2] * 8
    for index in range(2):
        np.testing.assert_allclose(
            found[index]["shapes"], expected[index]["shapes"], rtol=0, atol=0.02
        )


def test_images_to_look_at_that_do_not_fit_are_sampled_in_smaller_batches(
    engine, candidates, monkeypatch
):
    expected = engine.sample(candidates[0], NOISES)
    full = Full(engine.sampler, 1)
    monkeypatch.setattr(engine, "sampler", full)
    found = engine.sample(candidates[0], NOISES)
    assert full.sizes == [1] * 3
    np.testing.assert_allclose(found, expected, atol=1)


def test_an_image_that_does_not_fit_ends_the_run_in_words(engine, candidates):
    backend = engine.in_process()
    backend._sampler = Full(engine.sampler, 0)
    unit = make_unit(candidates, [(0, NOISES[0]), (1, NOISES[0])], ("shapes",), at(2))
    with pytest.raises(RunError, match="One image alone"):
        dict(backend.run([(0, unit)], measures(engine, ["shapes"])))


def test_small_models_get_a_process_for_each_core_and_others_one(monkeypatch):
    monkeypatch.setattr("calibri.scoring.backends.processes.cores", lambda: 4)
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
    monkeypatch.setattr("calibri.runs.session.resolve_device", torch.device)
    monkeypatch.setattr("calibri.runs.session.load_pipeline", lambda *args, **kwargs: 1 / 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    config = configured(3).model_copy(update={"device": "cuda"})
    with pytest.raises(ConfigError, match="torch sees 2"):
        Engine(config, PromptSets((), (), ()))


def test_an_evaluator_closes_its_backend(engine):
    closed = []

    class Backend(Watched):
        def close(self):
            closed.append(True)

    evaluator = engine.evaluator(Ledger(MemoryRecords()))
    evaluator._backend = Backend()
    with evaluator:
        pass
    assert closed == [True]


def test_in_turns_many_images_are_sampled_before_any_is_scored(engine, candidates):
    units = units_of(candidates)
    alone = dict(engine.in_process().run(units, measures(engine)))
    config = configured(1)
    config = config.model_copy(
        update={"rewards": config.rewards.model_copy(update={"offload": True})}
    )
    shared = Engine(config, PromptSets((), (), ()))
    assert dict(shared.in_process().run(units, measures(shared))) == alone
    assert (shared.residence.here, shared.residence.moves) == ("rewards", 2)
    shared.sample(candidates[0], NOISES)
    assert (shared.residence.here, shared.residence.moves) == ("pipeline", 3)


@pytest.mark.parametrize("images", [10, 10**5])
def test_a_process_has_as_many_threads_whatever_the_number_of_workers(monkeypatch, images):
    seen = []

    class Pool(Watched):
        def __init__(self, here, config, devices, threads):
            seen.append((len(devices), threads))

    monkeypatch.setattr("calibri.runs.session.Workers", Pool)
    monkeypatch.setattr("calibri.runs.session.cores", lambda: 4)
    monkeypatch.setattr("calibri.scoring.backends.processes.cores", lambda: 4)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    for workers in (1, 2, 3):
        made = Engine(configured(workers), PromptSets((), (), ()))
        made.evaluator(Ledger(MemoryRecords()), images=images)
    # A run too short for workers keeps all threads, in this process when there is one worker.
    expected = [(2, 4), (3, 4)] if images == 10 else [(1, 1), (2, 1), (3, 1)]
    assert seen == expected
