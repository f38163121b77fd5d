import errno
import json
import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from calibri.errors import ConfigError, RunError
from calibri.files import write_atomically
from calibri.results import RunSummary, SearchResult
from calibri.runs.folder import RunFolder, check_run_name

CONFIG = {"reward": "scenes", "search": {"sigma0": 0.25, "bounds": [-1.0, 2.0]}, "name": "é"}


def summary(verdict: str = "Better.", seconds: float = 0.1 + 0.2) -> RunSummary:
    return RunSummary(
        name="run",
        pipeline="shapes",
        transformer_class="SD3Transformer2DModel",
        calibri_version="0",
        created="2026-01-01",
        verdict=verdict,
        config=CONFIG,
        granularity="gate",
        sites=[],
        coefficients={"output": 5e-324},
        start={"output": 1.0},
        search=SearchResult(
            coefficients={"output": 1.1},
            generations=[],
            checkpoints=[],
            stopped="budget",
            images=3,
            seconds=seconds,
        ),
        evaluation=None,
        samples=[],
        machine={"cpu": "any"},
    )


def refuse(code: int):
    def call(*args: object, **kwargs: object) -> None:
        raise OSError(code, os.strerror(code))

    return call


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "runs" / "first", CONFIG)


@pytest.mark.parametrize("name", ["a", "A-1", "run_2.final", "_x", "7", "x" * 100])
def test_plain_names_pass(name: str) -> None:
    assert check_run_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", ".hidden", "-rf", "a/b", "a\\b", "a b", "a\n", "é", "٣", "a\0", "x" * 101],
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="cannot name a run"):
        check_run_name(name)


def test_paths_lie_in_the_folder(folder: RunFolder) -> None:
    paths = {
        "config.json": folder.config_path,
        "journal.jsonl": folder.journal_path,
        "images": folder.images_path,
        "results.json": folder.results_path,
        "calibration": folder.calibration_path,
        "report.html": folder.report_path,
    }
    assert paths == {name: folder.path / name for name in paths}


def test_a_created_run_opens_with_the_same_configuration(folder: RunFolder) -> None:
    assert folder.config == CONFIG
    assert RunFolder.open(folder.path).config == CONFIG
    stored = json.loads(folder.config_path.read_bytes())
    assert stored == {"format_version": 1, "config": CONFIG}


def test_a_used_folder_is_refused_and_left_alone(folder: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=f"calibri resume {folder.path}.*--name"):
        RunFolder.create(folder.path, {"other": 1})
    assert RunFolder.open(folder.path).config == CONFIG
    foreign = tmp_path / "photos"
    foreign.mkdir()
    (foreign / "cat.png").touch()
    with pytest.raises(RunError, match="not empty"):
        RunFolder.create(foreign, CONFIG)
    assert os.listdir(foreign) == ["cat.png"]


def test_of_two_starts_under_one_name_the_later_keeps_the_configuration_of_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run"
    real = RunFolder.lock

    def lock_after_the_other(self: RunFolder):
        monkeypatch.setattr(RunFolder, "lock", real)
        RunFolder.create(path, {"by": "the other"})
        return real(self)

    monkeypatch.setattr(RunFolder, "lock", lock_after_the_other)
    with pytest.raises(RunError, match="not empty"):
        RunFolder.create(path, CONFIG)
    assert RunFolder.open(path).config == {"by": "the other"}


def test_the_name_of_a_new_run_is_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[int] = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (flushed.append(os.fstat(fd).st_ino), real(fd)))
    RunFolder.create(tmp_path / "run", CONFIG)
    assert tmp_path.stat().st_ino in flushed


def test_a_start_that_was_interrupted_can_be_repeated(tmp_path: Path) -> None:
    path = tmp_path / "run"
    path.mkdir()
    (path / ".config.json.0123.tmp").write_bytes(b"{")
    (path / ".lock").touch()
    assert RunFolder.create(path, CONFIG).config == CONFIG


def test_a_folder_with_a_bad_name_or_configuration_is_not_created(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot name a run"):
        RunFolder.create(tmp_path / "a b", CONFIG)
    for value in (float("nan"), object()):
        with pytest.raises(ConfigError, match="cannot be kept as JSON"):
            RunFolder.create(tmp_path / "run", {"value": value})
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "runs").touch()
    for path in (tmp_path / "runs", tmp_path / "runs" / "first"):
        with pytest.raises(RunError, match="a file is in the way") as caught:
            RunFolder.create(path, CONFIG)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("call", "code", "words"),
    [
        ("mkdir", errno.EROFS, "read-only"),
        ("mkdir", errno.EACCES, "permission denied"),
        ("write", errno.ENOSPC, "the disk is full"),
        ("fsync", errno.EIO, "input/output error"),
        ("replace", errno.EACCES, "permission denied"),
        ("open", errno.EROFS, "read-only"),
    ],
)
def test_a_system_that_refuses_is_told_in_words_and_no_run_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int, words: str
) -> None:
    path = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse(code))
        with pytest.raises(RunError, match=words):
            RunFolder.create(path, CONFIG)
    assert not (path / "config.json").exists()
    assert RunFolder.create(path, CONFIG).config == CONFIG


def test_a_missing_run_lists_those_beside_it(folder: RunFolder) -> None:
    RunFolder.create(folder.path.with_name("second"), CONFIG)
    folder.path.with_name("no-run").mkdir()
    with pytest.raises(RunError, match=r"no run .*third.*has: first, second\."):
        RunFolder.open(folder.path.with_name("third"))
    with pytest.raises(RunError, match="no-run is not a run"):
        RunFolder.open(folder.path.with_name("no-run"))
    with pytest.raises(RunError, match="nor any other"):
        RunFolder.open(folder.path / "elsewhere" / "x")
    with pytest.raises(RunError, match="is a file"):
        RunFolder.open(folder.config_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is damaged"),
        (b"{", "is damaged"),
        (b"\xff\xfe", "is damaged"),
        (b"[]", "is damaged"),
        (b"[" * 100_000, "is damaged"),
        (b'{"format_version": 1}', "is damaged"),
        (b'{"config": {}}', "is damaged"),
        (b'{"format_version": 1, "config": []}', "is damaged"),
        (b'{"format_version": 1, "config": {"a": NaN}}', "is damaged.*NaN"),
        (b'{"format_version": 2, "config": {}}', "version 2; this Calibri reads version 1"),
        (b'{"format_version": 2}', "version 2; this Calibri reads version 1"),
        (b'{"format_version": "1", "config": {}}', "version '1'"),
    ],
)
def test_a_damaged_configuration_is_refused(folder: RunFolder, content: bytes, words: str) -> None:
    folder.config_path.write_bytes(content)
    with pytest.raises(RunError, match=words) as caught:
        RunFolder.open(folder.path)
    assert str(folder.config_path) in str(caught.value)


HOLDER = """
import sys, time
from pathlib import Path
from calibri.runs import RunFolder
with RunFolder.open(Path(sys.argv[1])).lock():
    print("locked", flush=True)
    time.sleep(600)
"""


def test_a_second_writer_learns_who_holds_the_run_until_it_is_killed(folder: RunFolder) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder.path)], stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        try:
            assert child.stdout.readline() == "locked\n"
            with pytest.raises(RunError) as caught, folder.lock():
                pytest.fail("two processes hold the lock")
        finally:
            child.send_signal(signal.SIGKILL)
    message = str(caught.value)
    assert f"process {child.pid} on host {socket.gethostname()!r}" in message
    assert str(folder.path) in message
    with folder.lock():
        assert json.loads((folder.path / ".lock.json").read_bytes())["pid"] == os.getpid()


def test_the_lock_is_exclusive_within_a_process_and_can_be_taken_again(folder: RunFolder) -> None:
    for _ in range(2):
        with folder.lock():
            with pytest.raises(RunError, match=f"process {os.getpid()}"), folder.lock():
                pytest.fail("the lock was taken twice")
            (folder.path / ".lock.json").unlink()
            with pytest.raises(RunError, match="another process"), folder.lock():
                pytest.fail("the lock was taken twice")


def test_the_lock_is_freed_after_an_error_inside(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[FileLock] = []  # a forgotten lock would be freed by the garbage collector

    def file_lock(path: Path, *, blocking: bool) -> FileLock:
        kept.append(FileLock(path, blocking=blocking))
        return kept[-1]

    monkeypatch.setattr("calibri.runs.folder.FileLock", file_lock)
    with pytest.raises(KeyError), folder.lock():
        raise KeyError("x")
    assert not (folder.path / ".lock.json").exists()
    with folder.lock():
        assert (folder.path / ".lock.json").exists()
    assert len(kept) == 2


def test_the_lock_needs_a_writable_folder(folder: RunFolder) -> None:
    lock = folder.path / ".lock"
    lock.unlink()
    lock.mkdir()
    with pytest.raises(RunError, match="Could not lock"), folder.lock():
        pytest.fail("locked a folder")


def test_results_come_back_exactly(folder: RunFolder) -> None:
    assert folder.read_results() is None
    for verdict in ("Better.", "Besser: <é>"):
        folder.write_results(summary(verdict))
        assert folder.read_results() == summary(verdict)


def test_results_that_are_not_finite_are_refused_and_earlier_ones_stay(folder: RunFolder) -> None:
    folder.write_results(summary())
    for seconds in (float("nan"), float("inf")):
        with pytest.raises(RunError, match="not finite"):
            folder.write_results(summary(seconds=seconds))
    assert folder.read_results() == summary()


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff", b'{"name": "run", "odd": 1}'])
def test_damaged_results_are_refused(folder: RunFolder, content: bytes) -> None:
    folder.results_path.write_bytes(content)
    with pytest.raises(RunError, match=r"results\.json is damaged.*calibri resume"):
        folder.read_results()


def test_results_that_are_a_folder_are_refused(folder: RunFolder) -> None:
    folder.results_path.mkdir()
    with pytest.raises(RunError, match="Could not read"):
        folder.read_results()


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_a_failed_replacement_keeps_the_old_file_and_leaves_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")
    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse(errno.ENOSPC))
        with pytest.raises(RunError, match=r"file: the disk is full"):
            write_atomically(path, b"new")
    assert (path.read_bytes(), os.listdir(tmp_path)) == (b"old", ["file"])
    write_atomically(path, b"new")
    assert (path.read_bytes(), os.listdir(tmp_path)) == (b"new", ["file"])


def test_the_content_is_flushed_before_the_name_changes_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []

    def fsync(fd: int, real=os.fsync) -> None:
        steps.append("folder" if stat.S_ISDIR(os.fstat(fd).st_mode) else "content")
        real(fd)

    def replace(source: Path, target: Path, real=os.replace) -> None:
        steps.append("replace")
        real(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    write_atomically(tmp_path / "file", b"data")
    assert steps == ["content", "replace", "folder"]


def test_a_written_file_is_readable_as_the_umask_allows(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "file", b"data")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


@pytest.mark.parametrize("private", [True, False])
def test_a_configuration_with_secrets_is_for_its_owner_alone(tmp_path, private):
    before = os.umask(0o022)
    try:
        folder = RunFolder.create(tmp_path / "run", CONFIG, private=private)
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.config_path.stat().st_mode) == (0o600 if private else 0o644)
