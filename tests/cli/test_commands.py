"""Every command once, on a tiny run of the shipped pipeline."""

import json
import shlex
import shutil

import pytest
import yaml
from PIL import Image

from calibri.artifact.calibration import Calibration
from calibri.config import RunConfig
from calibri.results import Evaluation, RunSummary
from calibri.runs.inspect import Inspection

PROMPTS = ["two small green triangles", "a red circle above a blue square"]


@pytest.fixture
def run(finished_run, tmp_path):
    """A copy of a finished run that a test may change, as runs/tiny."""
    return shutil.copytree(finished_run, tmp_path / "runs" / "tiny")


def coefficients(path):
    return RunSummary.model_validate_json((path / "results.json").read_bytes()).coefficients


def test_calibrate_leaves_a_calibration_and_a_report_and_says_what_next(calibri, tiny, tmp_path):
    result = calibri("calibrate", "--config", tiny, "--name", "first")
    assert result.exit_code == 0
    assert result.stderr.startswith("run runs/first\n")
    run = tmp_path / "runs" / "first"
    summary = RunSummary.model_validate_json((run / "results.json").read_bytes())
    assert summary.verdict in result.stdout
    assert (
        "calibration  runs/first/calibration\nreport       runs/first/report.html" in result.stdout
    )
    assert (run / "report.html").read_text().startswith("<!")
    assert "generation 1/1 shapes " in result.stderr
    lines = [line.strip() for line in result.stdout.splitlines()]
    following = [line for line in lines if line.startswith("calibri ")]
    assert len(following) == 2
    for line in following:
        assert calibri(*shlex.split(line)[1:]).exit_code == 0
    assert len(list((tmp_path / "images").iterdir())) == 1


def test_flags_win_over_the_file_and_set_wins_over_flags(calibri, tiny, tmp_path):
    result = calibri(
        *("calibrate", "--config", tiny, "--dry-run", "--steps", 3, "--generations", 5),
        *("--set", "search.generations=7", "--granularity", "layer", "--reward", "shapes"),
    )
    text, _, facts = result.stdout.partition("\n\n")
    config = RunConfig.model_validate(yaml.safe_load(text))
    assert (config.sampling.num_inference_steps, config.search.generations) == (3, 7)
    assert (config.space.granularity, config.search.popsize) == ("layer", 4)
    assert "transformer  SD3Transformer2DModel" in facts
    assert "popsize      4" in facts
    # 4 candidates and the original on the first prompt, 2 and the original on the others: 1 in
    # the first generations, 2 and 3 in the later ones, when the bucket has grown to 3 and 4.
    buckets = [int(2 * 2 ** (number / 6) + 1e-9) for number in range(7)]
    images = sum(5 + 3 * (bucket - 1) for bucket in buckets)
    assert f"{images} search" in facts
    assert not (tmp_path / "runs").exists()


def test_the_first_reward_is_maximised_and_the_others_watch(calibri, tiny):
    def rewards(*args):
        config = calibri("calibrate", "--dry-run", *args).stdout.partition("\n\n")[0]
        chosen = yaml.safe_load(config)["rewards"]
        return chosen["objective"], chosen["held_out"]

    both = rewards("--reward", "shapes-judge", "--reward", "shapes")
    assert both == ("shapes-judge", ["shapes"])
    # The default watcher does not watch itself.
    assert rewards("--reward", "shapes-judge") == ("shapes-judge", [])
    assert rewards() == ("shapes", ["shapes-judge"])


def test_resume_computes_what_is_missing_and_ends_the_same(calibri, run):
    expected = coefficients(run)
    journal = run / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[: len(lines) // 2]))
    (run / "results.json").unlink()
    shutil.rmtree(run / "calibration")
    refused = calibri("resume", "tiny", "--device", "gpu")
    assert refused.exit_code
    assert "'gpu'" in refused.stderr
    result = calibri("resume", "tiny", "--device", "cpu", "--workers", 2)
    assert (result.exit_code, coefficients(run)) == (0, expected)
    assert "Next" in result.stdout


def test_evaluate_prints_tables_or_json(calibri, run):
    args = ("evaluate", "tiny", "--num-prompts", 2, "--reward", "shapes")
    as_json = calibri(*args, "--json")
    evaluation = Evaluation.model_validate_json(as_json.stdout)
    assert (evaluation.num_prompts, evaluation.seed) == (2, 1)
    tables = calibri(*args)
    assert tables.exit_code == 0
    for setting in evaluation.settings:
        assert setting.label in tables.stdout


def test_generate_names_files_after_prompts_and_enlarges_small_images(calibri, run):
    result = calibri("generate", "shapes", *PROMPTS, "--calibration", run)
    paths = result.stdout.split()
    assert paths == [
        "images/00-two-small-green-triangles-seed0.png",
        "images/01-a-red-circle-above-a-blue-square-seed1.png",
    ]
    assert min(Image.open(paths[0]).size) >= 256
    assert "--no-enlarge" in result.stderr


def test_generate_compares_on_one_labelled_picture(calibri, run):
    words = ("generate", "shapes", *PROMPTS, "--calibration", run, "--compare")
    result = calibri(*words)
    named = "images/compared-two-small-green-triangles-and-1-more-seed0.png"
    assert (result.exit_code, result.stdout, result.stderr) == (0, f"{named}\n", "")
    assert calibri(*words, "--output", "one.png").stdout == "one.png\n"
    assert Image.open("one.png") == Image.open(named)
    assert Image.open(named).height > 2 * 256
    assert calibri(*words[:3], *words[4:]).stdout.endswith(
        "compared-two-small-green-triangles-seed0.png\n"
    )


def test_generate_saves_the_pixels_as_they_are_in_a_named_file(calibri, run):
    result = calibri(
        *("generate", "shapes", PROMPTS[0], "--calibration", run / "calibration"),
        *("--output", "new/one.png", "--no-enlarge"),
    )
    assert (result.exit_code, result.stdout, result.stderr) == (0, "new/one.png\n", "")
    small = Image.open("new/one.png")
    calibri("generate", "shapes", PROMPTS[0], "--calibration", run, "--output", "new/big.png")
    big = Image.open("new/big.png")
    assert small.resize(big.size, Image.Resampling.NEAREST).tobytes() == big.tobytes()
    assert min(big.size) >= 256 > max(small.size)


def test_fuse_saves_a_pipeline(calibri, run, tmp_path):
    result = calibri("fuse", run, "--output", "fused", "--check", "a red circle")
    assert (result.exit_code, result.stdout) == (0, "fused\n")
    assert "the calibration changes these images by" in " ".join(result.stderr.split())
    index = json.loads((tmp_path / "fused" / "model_index.json").read_text())
    assert index["transformer"][1] == "SD3Transformer2DModel"


@pytest.mark.parametrize("granularity", ["block", "layer", "gate"])
def test_inspect_shows_every_site_and_the_counts(calibri, granularity):
    args = ("inspect", "--granularity", granularity)
    inspection = Inspection.model_validate_json(calibri(*args, "--json").stdout)
    tree, counts, _ = calibri(*args).stdout.split("\n\n")
    blocks = {site.block for site in inspection.sites}
    parameters = {site.parameter for site in inspection.sites}
    names = {site.name for site in inspection.sites}
    assert len(parameters) == inspection.counts[granularity]
    # The head, every block, every scalar that is neither a block nor a site, every site, output.
    assert len(tree.splitlines()) == 2 + len(blocks | parameters | names)
    for site in inspection.sites:
        assert site.name.removeprefix(f"{site.block}.") in tree
    assert tree.count(" visual") == sum(s.stream == "visual" for s in inspection.sites)
    assert inspection.output in tree
    for name, count in inspection.counts.items():
        assert [name, str(count)] in [line.split() for line in counts.splitlines()]


def test_report_writes_the_page_again(calibri, run):
    (run / "report.html").unlink(missing_ok=True)
    assert calibri("report", "tiny").stdout == "runs/tiny/report.html\n"
    assert (run / "report.html").is_file()


@pytest.mark.parametrize("source", ["tiny", "runs/tiny/calibration"])
def test_publish_uploads_the_calibration_of_a_run(calibri, run, hub, monkeypatch, source):
    monkeypatch.setenv("HF_TOKEN", hub.token)
    result = calibri("publish", source, "user/name", "--private")
    (name, repository), *others = hub.repositories.items()
    address = f"{hub.endpoint}/user/name/commit/{repository.branches['main']}\n"
    assert (result.exit_code, result.stdout) == (0, address)
    assert (name, repository.private, others) == ("user/name", True, [])
    assert {"calibri.json", "calibri.safetensors"} <= set(repository.files_at("main"))


def test_a_published_calibration_is_the_one_in_the_folder(run):
    assert Calibration.from_pretrained(run / "calibration").provenance["run"] == "tiny"


def test_a_search_starts_from_a_finished_run(calibri, finished_run):
    shown = calibri("calibrate", "--dry-run", "--start", finished_run)
    assert shown.exit_code == 0
    assert f"start: {finished_run / 'calibration'}" in shown.stdout


def test_fuse_says_what_the_stored_precision_rounds_away(calibri, run, tmp_path):
    made = Calibration.from_pretrained(run)
    names = made.coefficients.scales[0]
    # The shipped pipeline is stored in float16, whose numbers are 0.0005 to 0.001 apart.
    scales = (dict.fromkeys(names, 1.0003),)
    weak = made.coefficients.model_copy(update={"scales": scales})
    folder = made.model_copy(update={"coefficients": weak}).save_pretrained(tmp_path / "weak")
    rounded = calibri("fuse", folder, "--output", "fused")
    assert rounded.exit_code == 0
    assert "rounding is more than a third of their effect" in " ".join(rounded.stderr.split())
    exact = calibri("fuse", folder, "--output", "exact", "--dtype", "float32")
    assert exact.exit_code == 0
    assert "rounding" not in exact.stderr
