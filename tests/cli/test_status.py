import json
import os
import shutil
import socket
import threading
import time

import pytest

from calibri.runs.status import RunStatus, status


@pytest.fixture
def run(finished_run, tmp_path):
    return shutil.copytree(finished_run, tmp_path / "runs" / "tiny")


def test_it_shows_where_a_run_stands(calibri, run):
    result = calibri("status", "tiny")
    assert result.exit_code == 0
    shown = dict(line.split(None, 1) for line in result.stdout.splitlines())
    assert shown["run"].strip() == "tiny, shapes"
    assert shown["state"].strip() == "finished: its results are there"
    assert shown["generation"].strip() == "1 of 1"
    assert "images/s" in shown["speed"]
    assert "of CPU time" in result.stdout
    assert "FLOP" in result.stdout
    assert "time left" not in result.stdout


def test_json_is_what_the_call_returns(calibri, run):
    found = RunStatus.model_validate_json(calibri("status", run, "--json").stdout)
    assert found == status(run)


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_watching_ends_with_the_run_and_says_each_change_once(calibri, run, monkeypatch, flags):
    monkeypatch.setattr("calibri.cli.status._EVERY", 0.01)
    results = (run / "results.json").read_bytes()
    (run / "results.json").unlink()
    (run / ".lock.json").write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))

    def finish():
        time.sleep(0.3)
        (run / "results.json").write_bytes(results)

    thread = threading.Thread(target=finish)
    thread.start()
    result = calibri("status", run, "--watch", *flags)
    thread.join()
    assert result.exit_code == 0
    assert result.stdout.count("running") == 1
    assert result.stdout.count("finished") == 1


def test_watching_a_terminal_redraws_in_place(calibri, run, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    result = calibri("status", run, "--watch")
    assert result.exit_code == 0
    assert "finished" in result.stdout


@pytest.mark.parametrize("given", ["nowhere", "runs", "few.txt"])
def test_what_is_no_run_is_said(calibri, run, tmp_path, given):
    (tmp_path / "few.txt").write_text("")
    result = calibri("status", given)
    assert result.exit_code == 5
    assert result.stderr.startswith("Error: ")


def test_the_page_of_a_cluster_has_a_line(calibri, run, monkeypatch):
    found = status(run).model_copy(update={"page": "http://head:8265/#/jobs/01000000"})
    monkeypatch.setattr("calibri.cli.status._read", lambda path: found)
    assert "http://head:8265/#/jobs/01000000" in calibri("status", run).stdout
