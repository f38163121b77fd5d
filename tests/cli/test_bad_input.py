"""What a person can get wrong: one clear message, the right exit code, nothing half done."""

import shutil
import subprocess
import sys

import pytest

from calibri.runs.folder import RunFolder

CONFIG, MODEL, REWARD, RUN = 2, 3, 4, 5


@pytest.fixture
def run(finished_run, tmp_path):
    return shutil.copytree(finished_run, tmp_path / "runs" / "tiny")


def refused(result, exit_code, *parts):
    assert result.exit_code == exit_code, result.output
    assert result.stderr.startswith("Error: ")
    for part in parts:
        assert part in result.stderr
    return True


@pytest.mark.parametrize(
    ("args", "exit_code", "parts"),
    [
        (["no/such/model", "--prompts", "shapes", "--reward", "shapes"], MODEL, ["no/such/model"]),
        (["some/model"], CONFIG, ["'some/model'", "--prompts FILE and --reward NAME"]),
        (["some/model", "--prompts", "x.txt"], CONFIG, ["needs --reward NAME"]),
        (["some/model", "--reward", "r"], CONFIG, ["needs --prompts FILE"]),
        (["--reward", "beauty"], REWARD, ["'beauty'", "Known rewards", "shapes"]),
        (["--prompts", "empty.txt"], CONFIG, ["empty.txt", "no prompts"]),
        (["--prompts", "missing.txt"], CONFIG, ["missing.txt"]),
        (["--config", "missing.yaml"], CONFIG, ["missing.yaml"]),
        (["--config", "empty.txt", "--set", "nothing"], CONFIG, ["'nothing'", "key=value"]),
        (["--set", "search.sigma=0.1"], CONFIG, ["search.sigma"]),
        (["--steps", "0"], CONFIG, ["sampling.num_inference_steps"]),
        (["--branches", "separate"], CONFIG, ["guidance"]),
        (["--device", "abacus"], CONFIG, ["abacus"]),
        (["--name", "../elsewhere"], CONFIG, ["'../elsewhere'"]),
    ],
)
def test_calibrate_refuses_before_a_run_exists(calibri, tiny, tmp_path, args, exit_code, parts):
    (tmp_path / "empty.txt").write_text("\n \n")
    config = [] if "--config" in args else ["--config", tiny]
    assert refused(calibri("calibrate", *config, *args), exit_code, *parts)
    assert not (tmp_path / "runs").exists()


def test_calibrate_refuses_a_run_that_exists(calibri, tiny, run):
    before = (run / "journal.jsonl").read_bytes()
    result = calibri("calibrate", "--config", tiny, "--name", "tiny")
    assert refused(result, RUN, "calibri resume runs/tiny", "--name")
    assert (run / "journal.jsonl").read_bytes() == before


def test_calibrate_refuses_a_file_in_the_way(calibri, tiny, tmp_path):
    (tmp_path / "runs").write_text("")
    assert refused(calibri("calibrate", "--config", tiny), RUN, "file is in the way")


def test_a_run_in_use_is_left_alone(calibri, run):
    (run / "results.json").unlink()  # as if it were still going on
    with RunFolder.open(run).lock():
        assert refused(calibri("resume", "tiny"), RUN, "runs/tiny is in use by process")


def test_an_unknown_run_names_those_that_exist(calibri, run):
    assert refused(calibri("resume", "tinny"), RUN, "no run runs/tinny", "runs has: tiny")
    assert refused(calibri("resume", "elsewhere/x"), RUN, "no run elsewhere/x")
    assert refused(calibri("report", "tinny"), RUN, "tinny")


def test_a_damaged_journal_is_refused_with_its_place(calibri, run):
    (run / "results.json").unlink()
    journal = run / "journal.jsonl"
    data = bytearray(journal.read_bytes())
    data[30] ^= 1
    journal.write_bytes(data)
    assert refused(calibri("resume", "tiny"), RUN, "journal.jsonl")


@pytest.mark.parametrize(
    "command",
    [
        ["evaluate", "X"],
        ["generate", "shapes", "a circle", "--calibration", "X"],
        ["fuse", "X", "--output", "fused"],
        ["publish", "X", "user/name"],
    ],
)
def test_a_wrong_calibration_is_refused(calibri, run, tmp_path, command):
    def with_calibration(path):
        return [path if word == "X" else word for word in command]

    (run / "calibration" / "calibri.json").write_text("{}")
    assert refused(calibri(*with_calibration(run / "calibration")), MODEL, "calibri.json")
    shutil.rmtree(run / "calibration")
    assert refused(calibri(*with_calibration("tiny")), RUN, "not finished", "resume runs/tiny")
    assert not (tmp_path / "fused").exists()


def test_fuse_leaves_a_folder_with_content_alone(calibri, run, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").write_text("x")
    assert refused(calibri("fuse", run, "--output", "full"), RUN, "not an empty folder")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["precious"]


@pytest.mark.parametrize(
    ("args", "exit_code", "parts"),
    [
        (["--output", "a.tiff", "x"], CONFIG, [".tiff"]),
        (["--output", "a.png", "x", "y"], CONFIG, ["a.png", "2 prompts"]),
        (["--compare", "x"], CONFIG, ["--calibration"]),
        (["--num-frames", "9", "x"], CONFIG, ["makes images", "num_frames"]),
        (["--height", "4096", "x"], CONFIG, ["height 4096", "another size"]),
        (["--calibration", "tiny", "--strength", "1.5", "x"], MODEL, ["1.5"]),
        (["--output", "file/x.png", "x"], RUN, ["file"]),
    ],
)
def test_generate_refuses(calibri, run, tmp_path, args, exit_code, parts):
    (tmp_path / "file").write_text("")
    assert refused(calibri("generate", "shapes", "--steps", "1", *args), exit_code, *parts)


def test_evaluate_asks_for_prompts_when_the_pipeline_is_not_the_shipped_one(calibri, run):
    result = calibri("evaluate", "tiny", "--pipeline", "some/model")
    assert refused(result, CONFIG, "'some/model' needs --prompts")


@pytest.mark.parametrize(
    "words",
    [
        ("calibrate", "nope"),
        ("plan", "nope"),
        ("inspect", "nope"),
        ("generate", "nope", "a red circle"),
        ("generate", "shapes", "a red circle", "--calibration", "nope"),
        ("evaluate", "nope"),
        ("fuse", "nope", "--output", "x"),
        ("export", "nope", "--format", "comfyui", "--output", "x.safetensors"),
        ("publish", "nope", "user/name"),
        ("calibrate", "--start", "nope"),
    ],
    ids=" ".join,
)
def test_a_name_that_can_be_nothing_is_refused_before_torch_is_imported(words, tmp_path):
    code = (
        "import sys\n"
        "from calibri.cli.app import app\n"
        "try:\n    app(sys.argv[1:])\n"
        "except SystemExit as end:\n    print(end.code, 'torch' in sys.modules)\n"
    )
    command = [sys.executable, "-c", code, *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == f"{MODEL} False\n"
    assert "'nope'" in done.stderr
    assert "neither a folder here" in done.stderr or "no such folder here" in done.stderr


def test_the_models_that_are_known_by_name_are_all_of_them():
    from calibri.cli.paths import KNOWN_MODELS
    from calibri.pipelines.families.lookup import published_geometries

    assert {name for name in published_geometries()} == set(KNOWN_MODELS)
