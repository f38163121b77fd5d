"""Whole runs on a Ray cluster, by the command: the same coefficients, and nothing left behind."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from calibri.config import load_config
from calibri.runs.calibrate import calibrate, resume
from calibri.runs.journal import Journal
from tests.scoring.ray_nodes import Nodes, family_of, left_behind
from tests.tiny import TINY_RUN

pytest.importorskip("ray", reason="Ray is not installed: pip install 'calibri[ray]'")
pytestmark = [pytest.mark.end_to_end]

WORKERS = "sampling.workers"
LONGER = {"search.generations": 2, "search.bucket_size": 12, "sampling.num_inference_steps": 4}
SMALL = TINY_RUN | LONGER | {"sampling.batch_size": 2}


def units_in(run):
    with Journal.open(run / "journal.jsonl") as journal:
        found = [r for r in journal.records if r["kind"] == "unit"]
    units = {
        (r["phase"], r["step"], r["unit"]): (r["digest"], json.dumps(r["scores"])) for r in found
    }
    assert len(units) == len(found)
    return units


def settings():
    pairs = [f"{key}={json.dumps(value)}" for key, value in SMALL.items() if key != WORKERS]
    return [word for pair in pairs for word in ("--set", pair)]


def command(*words, address=None):
    env = os.environ | {"OMP_NUM_THREADS": "1"} | ({"RAY_ADDRESS": address} if address else {})
    line = [sys.executable, "-c", "from calibri.cli.app import main; main()", *words]
    return subprocess.Popen(
        line,
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def wait_for_units(journal, count, process):
    for _ in range(1200):
        if journal.exists() and journal.read_text().count('"digest"') >= count:
            return
        if process.poll() is not None:
            break
        time.sleep(0.1)
    pytest.fail(f"no {count} units: {process.communicate()[0]}")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The run in this process."""
    runs = tmp_path_factory.mktemp("alone")
    summary = calibrate(load_config(values=SMALL), name="alone", runs=runs)
    return summary, units_in(runs / "alone")


def test_a_run_killed_on_two_actors_ends_on_four_as_in_one_process(tmp_path, monkeypatch, alone):
    with Nodes() as nodes:
        nodes.add(num_cpus=2)
        words = ("calibrate", "--name", "r", "--runs", str(tmp_path), *settings())
        driver = command(*words, "--workers", "ray", address=nodes.address)
        wait_for_units(tmp_path / "r" / "journal.jsonl", 6, driver)
        driver.kill()
        driver.communicate()
        nodes.add(num_cpus=2)
        monkeypatch.setenv("RAY_ADDRESS", nodes.address)
        summary = resume(tmp_path / "r")
    assert summary.search.coefficients == alone[0].search.coefficients
    assert summary.evaluation.comparisons == alone[0].evaluation.comparisons
    assert units_in(tmp_path / "r") == alone[1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_driver_that_ends_leaves_no_process_and_can_be_resumed(tmp_path, alone, number):
    words = ("calibrate", "--name", "r", "--runs", str(tmp_path), "--workers", "ray")
    driver = command(*words, *settings())
    wait_for_units(tmp_path / "r" / "journal.jsonl", 3, driver)
    family = family_of(driver)
    assert any("raylet" in process.name() for process in family)
    # As a terminal does: the whole group hears of Ctrl-C.
    os.killpg(driver.pid, number) if number == signal.SIGINT else driver.send_signal(number)
    said = driver.communicate(timeout=60)[0]
    if number != signal.SIGKILL:
        assert driver.returncode == 130
        assert "calibri resume" in said
        assert "Traceback" not in said
    assert not left_behind(family, 30)
    assert units_in(tmp_path / "r").items() <= alone[1].items()
