"""Runs without a name, runs that are finished, and what a killed writer leaves behind."""

import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest

from calibri.errors import RewardError, RunError
from calibri.files import remove_temporaries, write_atomically
from calibri.runs.calibrate import calibrate, resume
from calibri.runs.folder import RunFolder, reserved_run


def test_runs_of_the_same_second_each_get_a_folder_of_their_own(tmp_path):
    def start(index):
        with reserved_run(tmp_path / "runs") as path:
            RunFolder.create(path, {"index": index})
        return path

    with ThreadPoolExecutor(20) as threads:
        paths = list(threads.map(start, range(20)))
    assert len(set(paths)) == 20
    assert [RunFolder.open(path).config for path in paths] == [{"index": i} for i in range(20)]


def test_a_run_that_was_refused_leaves_nothing(tmp_path):
    with pytest.raises(RewardError):
        calibrate(rewards={"objective": "beauty"}, runs=tmp_path / "deep" / "runs")
    assert list(tmp_path.rglob("*")) in ([], [tmp_path / "deep"])
    kept = tmp_path / "kept"
    kept.mkdir()
    with pytest.raises(RewardError):
        calibrate(rewards={"objective": "beauty"}, runs=kept)
    assert kept.is_dir()


def test_a_folder_that_cannot_be_made_is_told_in_words(tmp_path):
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(RunError, match="a file is in the way"):
        calibrate(runs=tmp_path / "runs")


def test_a_finished_run_is_not_sampled_again(finished_run, tmp_path, monkeypatch):
    path = shutil.copytree(finished_run, tmp_path / "run")
    before = {file: file.stat().st_mtime_ns for file in path.rglob("*") if file.is_file()}
    monkeypatch.setattr("calibri.runs.calibrate.Session", None)
    assert resume(path) == RunFolder.open(path).read_results()
    assert {file: file.stat().st_mtime_ns for file in path.rglob("*") if file.is_file()} == before


def test_what_is_missing_of_a_finished_run_is_made_again(finished_run, tmp_path):
    path = shutil.copytree(finished_run, tmp_path / "run")
    expected = RunFolder.open(path).read_results()
    shutil.rmtree(path / "calibration")
    found = resume(path)
    assert found.coefficients == expected.coefficients
    assert (path / "calibration" / "calibri.json").is_file()


def test_temporaries_of_killed_writers_go_when_the_run_goes_on(finished_run, tmp_path):
    path = shutil.copytree(finished_run, tmp_path / "run")
    stale = [path / ".results.json.0a1b2c3d.tmp", path / "images" / ".a.png.ffffffff.tmp"]
    others = [path / "notes.tmp", path / ".mine.tmp", path / ".results.json.xyz.tmp"]
    for file in (*stale, *others):
        file.write_text("half")
    with RunFolder.open(path).lock():
        assert not any(file.exists() for file in stale)
    assert all(file.exists() for file in others)


def test_what_a_writer_writes_is_no_leftover(tmp_path, monkeypatch):
    """The name that is removed is the name that is written."""
    seen = []

    def stop(source, target):
        seen.append(source)
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", stop)
    monkeypatch.setattr("pathlib.Path.unlink", lambda self: None)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "results.json", b"{}")
    monkeypatch.undo()
    assert seen[0].exists()
    remove_temporaries(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_images_that_cannot_be_kept_are_told_in_words(finished_run, tmp_path):
    path = shutil.copytree(finished_run, tmp_path / "run")
    shutil.rmtree(path / "images")
    (path / "images").write_text("in the way")
    with pytest.raises(RunError, match="a file is in the way.*resume"):
        RunFolder.open(path).make_images_folder()
