"""Units computed by several processes: the same scores, whatever becomes of the processes."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest
import torch

from calibri.config import load_config
from calibri.errors import ConfigError, RewardError, RunError
from calibri.prompts.sources import PromptSets
from calibri.runs.calibrate import calibrate
from calibri.runs.journal import Journal
from calibri.runs.session import Session
from calibri.scoring.backends.board import WorkerLost
from calibri.scoring.backends.local import Local
from calibri.scoring.backends.pace import Pace
from calibri.scoring.backends.processes import (
    Worker,
    cores,
    default_workers,
    result_of,
    worker_command,
    worker_devices,
)
from calibri.scoring.backends.workers import Workers
from calibri.scoring.units import make_unit
from tests.fakes import Elsewhere, Idle
from tests.scoring.sample_units import at, configured, units_of


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
    for _ in range(2):
        (pid,) = children() - before
        os.kill(pid, signal.SIGKILL)
        assert dict(pool.run(units)) == alone
        killed.add(pid)
    pool.close()
    assert len(killed) == 2


@pytest.mark.slow
def test_a_worker_that_is_stuck_is_replaced_and_nothing_is_lost(session, candidates):
    units = units_of(candidates)
    alone = dict(Local(session.bench).run(units))
    before, pace = children(), Pace(least=2.0)
    pool = Workers(Idle(), [Worker(configured(2), "cpu", 1, pace)], 1)
    assert dict(pool.run(units)) == alone
    (pid,) = children() - before
    os.kill(pid, signal.SIGSTOP)
    assert dict(pool.run(units)) == alone
    assert pid not in children()
    pool.close()


def test_patience_is_a_multiple_of_what_units_took():
    pace = Pace(least=1.0, first=50.0)
    assert pace.patience == 50.0
    pace.add(0.001)
    assert pace.patience == 1.0
    pace.add(3.0)
    pace.add(2.0)
    assert pace.patience == 60.0


def test_one_that_takes_no_input_is_not_waited_for(candidates, monkeypatch, tmp_path):
    """A message of a megabyte fills the pipe of a process that never reads."""
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\nexec sleep 60\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))

    class Long:
        rows = (1, 2)

        def to_json(self):
            return {"text": "x" * 2**20}

    pool = Workers(Idle(), [Worker(configured(1), "cpu", 1, Pace(first=0.2))], 1)
    with pytest.raises(RunError, match="died 3 times on the same 2 images.*no answer within 0 s"):
        dict(pool.run([(0, Long())]))
    pool.close()


def test_one_process_leaves_the_others_their_share(candidates):
    taken = {"here": [], "there": []}

    class Greedy(Idle):
        """Takes all it can before it gives anything, as one that alternates on a device."""

        def run(self, units):
            mine = list(units)
            taken["here"] += mine
            time.sleep(0.2)
            yield from ((index, {}) for index, _ in mine)

    class Other(Elsewhere):
        def compute(self, unit):
            time.sleep(0.01)
            taken["there"].append(unit)
            return {}

    units = list(enumerate(unit for _, unit in units_of(candidates) * 4))
    assert len(list(Workers(Greedy(), [Other(), Other()], 1).run(units))) == len(units)
    assert len(taken["there"]) >= len(units) // 2


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


def test_an_error_of_a_class_that_only_the_worker_knows_is_told():
    with pytest.raises(RunError, match="what it said"):
        result_of({"error": "OfAnotherPackage", "message": "what it said"})


def test_what_others_have_finished_is_kept_when_this_process_stops(candidates):
    given = threading.Event()

    class Quick(Elsewhere):
        def compute(self, unit):
            if given.is_set():
                time.sleep(60)
            given.set()
            return {"scores": {"shapes": [1.0]}}

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
    with pytest.raises(WorkerLost, match="the reason"):
        worker.compute(Saying("farewell"))
    worker.stop()
    with pytest.raises(WorkerLost, match="were stopped"):
        worker.open()


def test_workers_import_from_where_this_process_does(monkeypatch, tmp_path):
    (tmp_path / "yaml.py").write_text("raise SystemExit('a file of the working directory')")
    monkeypatch.chdir(tmp_path)
    own = "from calibri.scoring.backends.worker"
    command = [part.replace(own, "import yaml #") for part in worker_command()]
    assert any("import yaml" in part for part in command)
    assert subprocess.run(command, capture_output=True).returncode == 0


def test_a_worker_that_fails_is_given_no_other_unit(candidates):
    asked = []

    class Failing(Elsewhere):
        def compute(self, unit):
            asked.append(unit)
            raise RunError("died")

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
                if r["kind"] == "unit"
            }
            assert len(units) == sum(r["kind"] == "unit" for r in journal.records)
        return summary, units

    (one, units), (two, same) = run(1), run(2)
    assert one.search.coefficients == two.search.coefficients
    assert one.evaluation.comparisons == two.evaluation.comparisons
    assert units == same


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
