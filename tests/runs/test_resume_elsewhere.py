"""A run goes on anywhere: a replay never needs equal linear algebra, and says what changed."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from calibri.config import load_config
from calibri.errors import Interrupted, JournalError, RunError
from calibri.progress import Progress
from calibri.runs.calibrate import calibrate, resume
from calibri.runs.header import open_journal, settings_of, versions_here
from calibri.runs.journal import Journal, read_journal
from calibri.runs.session import Session
from calibri.scoring.ledger import Ledger, MemoryRecords

TINY = {
    "device": "cpu",
    "sampling.num_inference_steps": 2,
    "sampling.batch_size": 16,
    "sampling.workers": 1,
    "space.members": 2,
    "rewards.objective": "jpeg-compressibility",
    "rewards.held_out": (),
    "search.generations": 4,
    "search.popsize": 8,
    "search.bucket_size": 4,
    "search.bucket_growth": 1,
    "search.validate_every": 2,
    "search.num_validation_prompts": 12,
    "evaluation.num_prompts": 4,
    "evaluation.images_per_prompt": 1,
    "evaluation.step_multiples": (1,),
    "evaluation.num_samples": 0,
}


class StopAfter(Progress):
    def __init__(self, units):
        self.left = units
        self.new = []
        self.said = []

    def unit(self, images, new):
        self.new.append(new)
        self.left -= new
        if self.left == 0:
            raise KeyboardInterrupt

    def message(self, text):
        self.said.append(text)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run that was stopped in its last generation."""
    runs = tmp_path_factory.mktemp("runs")
    with pytest.raises(Interrupted):
        calibrate(load_config(values=TINY), name="part", runs=runs, progress=StopAfter(13))
    return runs / "part"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    return calibrate(load_config(values=TINY), name="whole", runs=runs)


@pytest.fixture
def copy(stopped, tmp_path):
    return shutil.copytree(stopped, tmp_path / "part")


def asked(path):
    return [r for r in read_journal(path / "journal.jsonl") if r["kind"] == "vectors"]


def test_other_linear_algebra_replays_what_was_asked(copy, whole, monkeypatch):
    """Eigenvectors of another library: other signs, and other last bits."""
    plain, rng = np.linalg.eigh, np.random.default_rng(0)

    def other(matrix):
        values, vectors = plain(matrix)
        signs = rng.choice([-1.0, 1.0], size=len(values))
        return values * (1 + 1e-13), vectors * signs * (1 + 1e-13)

    before = asked(copy)
    monkeypatch.setattr(np.linalg, "eigh", other)
    progress = StopAfter(1000)
    found = resume(copy, progress=progress)
    assert progress.new[:13] == [False] * 13
    assert asked(copy)[: len(before)] == before
    # Up to where it stopped, all is as it was; from there on another search goes on.
    for ours, theirs in zip(
        found.search.generations[:3], whole.search.generations[:3], strict=True
    ):
        assert ours.mean == pytest.approx(theirs.mean, abs=1e-9)
    assert len(found.search.generations) == 4


@pytest.mark.parametrize("machine", [{}, {"workers": 2, "device": "auto"}], ids=["same", "other"])
def test_it_ends_as_if_it_had_never_stopped(copy, whole, machine, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "calibri.runs.calibrate.Session",
        lambda config, **options: seen.append(config) or Session(config, **options),
    )
    found = resume(copy, **machine)
    assert seen[0].sampling.workers == machine.get("workers", 1)
    assert seen[0].device == machine.get("device", "cpu")
    assert found.search.coefficients == whole.search.coefficients
    assert found.evaluation.comparisons == whole.evaluation.comparisons


@pytest.mark.end_to_end
@pytest.mark.parametrize("threads", ["1", "2"])
def test_other_kernels_lose_no_unit(copy, threads, tmp_path):
    """Kernels of other processors, which OpenBLAS lets one choose."""
    script = (
        "import sys, tests.runs.test_resume_elsewhere as t; p = t.StopAfter(1000);"
        "t.resume(sys.argv[1], progress=p); assert p.new[:13] == [False] * 13, p.new"
    )
    for kernel in ("Haswell", "Nehalem", "Sandybridge", "Prescott"):
        path = shutil.copytree(copy, tmp_path / f"{kernel}-{threads}")
        env = os.environ | {"OPENBLAS_CORETYPE": kernel, "OPENBLAS_NUM_THREADS": threads}
        done = subprocess.run(
            [sys.executable, "-c", script, str(path)], env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("dtype", "bfloat16"),
        ("pipeline", "./a/copy"),
        ("sampling.negative_prompt", "blurry"),
        ("sampling.guidance_scale", 2.0),
        ("rewards.on_failure", "drop"),
        ("rewards.guard", "off"),
        ("rewards.held_out", ["shapes"]),
        ("rewards.options", {"jpeg-compressibility": {"quality": 30}}),
        ("search.method", "random"),
        ("search.tail", 0.5),
        ("search.sigma0", 0.3),
        ("evaluation.num_prompts", 6),
        ("seed", 3),
    ],
)
def test_an_edited_setting_is_named_and_refused(key, value):
    journal, progress = MemoryRecords(), StopAfter(1)
    open_journal(journal, load_config(values=TINY), progress)
    with pytest.raises(RunError, match=f"edited in .*{key}"):
        open_journal(journal, load_config(values=TINY | {key: value}), progress)


@pytest.mark.parametrize(
    ("key", "value"),
    [("device", "cuda"), ("sampling.workers", 4), ("rewards.offload", True)],
)
def test_where_it_is_computed_is_no_setting(key, value):
    journal, progress = MemoryRecords(), StopAfter(1)
    open_journal(journal, load_config(values=TINY), progress)
    open_journal(journal, load_config(values=TINY | {key: value}), progress)
    assert (len(journal.records), progress.said) == (1, [])


def test_secrets_stay_out_of_the_journal():
    options = {"remote": {"token": "hidden", "url": "http://127.0.0.1:1/?key=hidden"}}
    config = load_config(values=TINY | {"rewards.options": options})
    assert "hidden" not in json.dumps(settings_of(config))


def test_other_versions_are_told_and_recorded():
    journal, progress = MemoryRecords(), StopAfter(1)
    config = load_config(values=TINY)
    old = versions_here() | {"torch": "1.0"}
    open_journal(journal, config, progress, old)
    open_journal(journal, config, progress, old)
    assert progress.said == []
    open_journal(journal, config, progress)
    (said,) = progress.said
    assert f"torch 1.0 -> {versions_here()['torch']}" in said
    assert [record["versions"]["torch"] for record in journal.records][0] == "1.0"
    open_journal(journal, config, progress)
    assert len(progress.said) == 1


def test_a_journal_without_a_head_is_older_and_goes_on(copy):
    records = [r for r in read_journal(copy / "journal.jsonl") if r["kind"] == "unit"]
    (copy / "journal.jsonl").unlink()
    with Journal.open(copy / "journal.jsonl") as journal:
        for record in records:
            journal.append(record)
    progress = StopAfter(1000)
    resume(copy, progress=progress)
    assert progress.new[:13] == [False] * 13


@pytest.mark.parametrize("stored", [None, 3, {"float64": "?", "shape": [1]}, {"shape": [1, 2]}])
def test_vectors_that_are_none_are_refused(stored):
    journal = MemoryRecords()
    journal.append({"kind": "vectors", "name": "search", "step": 0, "vectors": stored or []})
    with pytest.raises(JournalError, match="vectors"):
        Ledger(journal).pin("search", 0, [np.zeros(2)])


def test_vectors_keep_every_bit_and_number():
    journal, rng = MemoryRecords(), np.random.default_rng(0)
    vectors = [rng.normal(size=7) for _ in range(3)]
    assert Ledger(journal).pin("search", 0, vectors) == vectors
    stored = json.loads(json.dumps(journal.records))
    again = MemoryRecords()
    again.records = stored
    found = Ledger(again).pin("search", 0, [np.zeros(7)] * 3)
    assert np.array_equal(found, vectors)
    with pytest.raises(JournalError, match="does not hold 2 vectors"):
        Ledger(again).pin("search", 0, [np.zeros(7)] * 2)
