"""Where a run stands, while it runs, stopped, killed and finished; from its files alone."""

import json
import os
import shutil
import socket
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

import calibri
from calibri.config import validate_config
from calibri.errors import CalibriError, Interrupted, JournalError, RunError
from calibri.progress import Progress
from calibri.runs.calibrate import calibrate, resume
from calibri.runs.folder import RunFolder
from calibri.runs.journal import Journal, read_journal
from calibri.runs.notes import JournalNotes
from calibri.runs.status import status
from tests.fakes import StopAfter
from tests.tiny import tiny_run

TINY = {
    "sampling.batch_size": 8,
    "search.generations": 4,
    "search.bucket_size": 3,
    "search.validate_every": 2,
    "evaluation.step_multiples": (1, 2),
}


class Looking(Progress):
    """Looks at the run after every unit, as another process would."""

    def __init__(self, path):
        self.path, self.seen, self.images = path, [], 0

    def unit(self, images, new):
        self.images += images
        self.seen.append((self.images, status(self.path)))


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    looking = Looking(runs / "a")
    return calibrate(tiny_run(TINY), name="a", runs=runs, progress=looking), looking


@pytest.fixture
def copy(watched, tmp_path):
    """A run without results, so one that is not finished."""
    path = shutil.copytree(watched[1].path, tmp_path / "a")
    (path / "results.json").unlink()
    return path


def hold(path, pid, host):
    (path / ".lock.json").write_text(json.dumps({"pid": pid, "host": host}))


def test_while_it_runs_every_image_counts_and_the_end_comes_nearer(watched):
    summary, looking = watched
    for images, found in looking.seen:
        assert (found.state, found.known_by) == ("running", f"process {os.getpid()} works on it")
        assert sum(found.images.values()) == images
        assert found.images_per_second > 0
        assert all(found.images[phase] <= found.images_planned[phase] for phase in found.images)
        assert found.seconds_left >= 0
    states = [found for _, found in looking.seen]
    assert [s.generations for s in states] == sorted(s.generations for s in states)
    assert (states[0].generations, states[-1].generations) == (0, 4)
    assert [s.hours for s in states] == sorted(s.hours for s in states)
    assert states[0].checkpoint is None
    assert states[-1].checkpoint.generation == 3
    assert [s.seconds_left == 0.0 for s in states] == [False] * (len(states) - 1) + [True]
    assert {s.phase for s in states} == {"search", "validation", "evaluation"}


def test_a_finished_run_says_what_its_summary_says(watched):
    summary, looking = watched
    found = status(looking.path)
    assert found.state == "finished"
    assert found.images["search"] + found.images["validation"] == summary.search.images
    assert found.generation == summary.search.generations[-1]
    assert found.checkpoint.difference == summary.search.checkpoints[-1].difference
    assert found.hours * 3600 >= summary.search.seconds
    assert (found.seconds_left, found.batch_size, found.device) == (0.0, 8, "cpu")
    assert (found.failed_images, found.retries, found.workers) == (0, 0, {})


def test_operations_so_far_are_those_that_were_planned(watched):
    """All of the plan but the text encoders, which are counted once a prompt."""
    _, looking = watched
    folder = RunFolder.open(looking.path)
    ours = calibri.plan(validate_config(folder.config)).procedures[1].petaflop
    expected = sum(value for part, value in ours.items() if part != "text encoders")
    assert status(looking.path).petaflop == pytest.approx(expected)


def test_stopped_and_resumed(tmp_path):
    with pytest.raises(Interrupted):
        calibrate(tiny_run(TINY), name="a", runs=tmp_path, progress=StopAfter(5))
    found = status(tmp_path / "a")
    assert (found.state, found.known_by) == ("stopped", "no process works on it")
    assert found.seconds_left > 0
    resume(tmp_path / "a")
    assert status(tmp_path / "a").state == "finished"


def test_a_killed_run_is_known_by_its_process(copy):
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    hold(copy, child.pid, socket.gethostname())
    found = status(copy)
    assert (found.state, found.known_by.split(",")[0]) == ("stopped", f"process {child.pid}")


def test_elsewhere_it_is_known_by_what_it_wrote_last(copy):
    hold(copy, 7, "another-machine")
    found = status(copy)
    assert found.state == "running"
    assert "process 7 on host 'another-machine' wrote" in found.known_by
    for path in (copy / "config.json", copy / "journal.jsonl"):
        os.utime(path, (1e9, 1e9))
    found = status(copy)
    assert found.state == "silent"
    assert "wrote nothing for" in found.known_by


def test_a_holder_that_cannot_be_read_is_none(copy):
    for text in ("", "{", '{"pid": "x"}', "[]"):
        (copy / ".lock.json").write_text(text)
        assert status(copy).state == "stopped"


def test_looking_neither_locks_nor_writes(copy):
    def everything():
        found = {p: p.stat() for p in copy.rglob("*")}
        return {p: (s.st_mtime_ns, s.st_size, s.st_ino) for p, s in found.items()}

    folder = RunFolder.open(copy)
    with folder.lock():
        before = everything()
        assert status(copy).state == "running"
        assert everything() == before


@given(st.data())
def test_wherever_a_writer_is_there_is_a_state(watched, tmp_path_factory, data):
    """A reader may see any beginning of the file, records torn or not, or no file."""
    path = watched[1].path
    whole = (path / "journal.jsonl").read_bytes()
    part = tmp_path_factory.mktemp("part") / "a"
    part.mkdir()
    (part / "config.json").write_bytes((path / "config.json").read_bytes())
    size = data.draw(st.integers(0, len(whole)))
    if size:
        (part / "journal.jsonl").write_bytes(whole[:size])
    found = status(part)
    assert found.state == "stopped"
    assert sum(found.images.values()) <= sum(status(path).images.values())
    assert found.images_per_second is None or found.images_per_second > 0


def test_before_anything_is_computed_nothing_is_known(copy):
    (copy / "journal.jsonl").write_bytes(b"")
    found = status(copy)
    nothing = (found.phase, found.checkpoint, found.images_per_second, found.seconds_left)
    assert nothing == (None, None, None, None)
    assert (found.images, found.hours, found.generations_planned) == ({}, 0.0, 4)


def test_failures_and_retries_are_counted(copy):
    records = read_journal(copy / "journal.jsonl")
    (copy / "journal.jsonl").unlink()
    changes = iter(
        [{"attempts": 3}, {"retried": 2}, {"worker": "cuda:1", "busy": 100.0, "batch_size": 4}]
    )
    before = status(copy).device_hours
    with Journal.open(copy / "journal.jsonl") as journal:
        for record in records:
            if record["kind"] == "unit":
                record |= next(changes, {"worker": "cuda:0"})
                record["scores"]["shapes"][0] = None
            journal.append(record)
    found = status(copy)
    units = sum(record["kind"] == "unit" for record in records)
    assert (found.failed_images, found.retries) == (units, 4)
    assert (found.batch_size, list(found.workers)) == (4, ["cuda:0", "cuda:1"])
    assert found.device_hours - before > 100 / 3600
    total = sum(found.workers.values())
    assert total < found.images_per_second


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda p: shutil.rmtree(p), RunError, "There is no run"),
        (lambda p: (p / "config.json").unlink(), RunError, "is not a run"),
        (lambda p: (p / "config.json").write_text('{"format_version": 9}'), RunError, "version 9"),
        (
            lambda p: (p / "config.json").write_text('{"format_version": 1, "config": {"a": 1}}'),
            CalibriError,
            "no such setting",
        ),
        (
            lambda p: (p / "journal.jsonl").write_bytes(
                b"x" + (p / "journal.jsonl").read_bytes()[1:]
            ),
            JournalError,
            "damaged: record 1",
        ),
    ],
)
def test_what_is_no_run_is_refused(copy, change, error, words):
    change(copy)
    with pytest.raises(error, match=words):
        status(copy)


@pytest.mark.parametrize(
    "record",
    [
        {"kind": "unit"},
        {"kind": "unit", "phase": "search", "seconds": 1.0, "scores": {"a": {}}},
        {"kind": "unit", "phase": "search", "seconds": "long", "scores": {}},
        {"kind": "note", "event": "generation", "value": {"mean": 1.0}},
        {"kind": "note", "event": "plan", "value": {"images": 3}},
    ],
)
def test_records_of_another_version_are_refused(copy, record):
    with Journal.open(copy / "journal.jsonl") as journal:
        journal.append(record)
    with pytest.raises(JournalError, match="written by another version"):
        status(copy)


def test_records_of_kinds_to_come_are_passed_over(copy):
    before = status(copy)
    with Journal.open(copy / "journal.jsonl") as journal:
        journal.append({"kind": "something new", "phase": 3})
    assert status(copy) == before


def test_no_torch_is_loaded(watched):
    code = (
        "import sys, calibri; calibri.status(sys.argv[1]);"
        "sys.exit(bool({'torch', 'diffusers', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code, watched[1].path]).returncode == 0


def rewritten(path, records):
    (path / "journal.jsonl").unlink()
    with Journal.open(path / "journal.jsonl") as journal:
        for record in records:
            journal.append(record)
    return status(path)


def test_units_that_were_computed_early_count_as_done_and_begin_no_phase(copy):
    records = read_journal(copy / "journal.jsonl")
    early = next(r for r in records if r.get("phase") == "evaluation")
    searched = [r for r in records if r.get("phase") != "evaluation"]
    before = rewritten(copy, searched)
    after = rewritten(copy, [*searched, {**early, "ahead": True}])
    assert (before.phase, after.phase) == ("validation", "validation")
    done = before.images | {"evaluation": len(early["scores"]["shapes"])}
    assert after.images == done
    assert after.seconds_left > 0
    assert rewritten(copy, [*searched, early]).phase == "evaluation"


def test_the_page_of_a_cluster_is_shown_while_the_run_goes_on(copy):
    assert status(copy).page is None
    with Journal.open(copy / "journal.jsonl") as journal:
        notes = JournalNotes(journal)
        notes.page("http://head:8265/#/jobs/01000000")
        notes.page("http://head:8265/#/jobs/02000000")
    assert status(copy).page is None
    hold(copy, os.getpid(), socket.gethostname())
    assert status(copy).page == "http://head:8265/#/jobs/02000000"
