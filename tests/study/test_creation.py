"""A study of folders or of a calibration; what cannot be one is refused, and nothing is left."""

import json
import os
import stat

import numpy as np
import pytest
from PIL import Image

from calibri import generate
from calibri.artifact.calibration import Calibration
from calibri.artifact.grid import enlarged
from calibri.errors import CalibriError, PromptError, RunError, StudyError
from calibri.runs.fresh_prompts import unseen_prompts
from calibri.study import create
from calibri.study.checks import ruined
from calibri.study.records import StudyFolder
from tests.study.studies import folders, links, study, texts
from tests.tiny import has_hooks, scaled_calibration


def pixels(folder, name):
    with Image.open(folder.images / name) as opened:
        return np.asarray(opened)


def test_every_two_conditions_meet_on_every_prompt(tmp_path):
    folder = StudyFolder(study(tmp_path, conditions=("a", "b", "c"), count=4, checks=2))
    made = folder.read()
    shown = [pair for pair in made.pairs if not pair.check]
    expected = {(text, two) for text in texts(4) for two in (("a", "b"), ("a", "c"), ("b", "c"))}
    assert {(pair.prompt, pair.conditions) for pair in shown} == expected
    for pair in shown:  # red tells the condition, of green the prompt
        for condition, name in zip(pair.conditions, pair.images, strict=True):
            red, green, _ = pixels(folder, name)[0, 0]
            assert red == 40 * "abc".index(condition)
            assert green == 10 * texts(4).index(pair.prompt)
    assert (made.pairs_each, made.checks_each, len(made.pairs) - len(shown)) == (12, 2, 2)


def test_a_check_is_an_image_of_its_prompt_beside_a_ruin(tmp_path):
    folder = StudyFolder(study(tmp_path, checks=3))
    for pair in folder.read().pairs:
        if pair.check:
            good, bad = (pixels(folder, name) for name in pair.images)
            assert good[0, 0, 1] == 10 * texts().index(pair.prompt)
            assert good.shape == bad.shape
            assert np.ptp(bad) > 60
            assert np.ptp(good, axis=(0, 1)).max() == 0


def test_a_ruin_has_the_size_and_none_of_the_picture():
    picture = Image.fromarray(np.tile(np.arange(200, dtype=np.uint8)[:, None, None], (1, 90, 3)))
    one = ruined(picture, np.random.default_rng(0))
    assert one.size == picture.size
    assert np.array_equal(one, ruined(picture, np.random.default_rng(0)))
    rows = np.asarray(one, dtype=float).mean((1, 2))
    assert abs(np.corrcoef(rows, np.arange(200))[0, 1]) < 0.9


def test_only_the_owner_can_read_invitations(tmp_path):
    made = study(tmp_path, participants=5)
    assert stat.S_IMODE(made.stat().st_mode) == 0o700
    for name in ("invitations.csv", "votes.db"):
        assert stat.S_IMODE((made / name).stat().st_mode) == 0o600
    assert len(set(links(made))) == 5
    kept = (made / "votes.db").read_bytes() + (made / "study.json").read_bytes()
    for link in links(made):
        assert link.split("-", 1)[1].encode() not in kept


def test_files_are_matched_by_number_or_by_what_the_prompts_say(tmp_path):
    images = folders(tmp_path, count=12)
    plain = tmp_path / "prompts.txt"
    plain.write_text("\n".join(f"number {i}" for i in range(12)))
    stated = tmp_path / "stated.jsonl"
    rows = [{"file": f"{i}.png", "prompt": f"number {i}"} for i in reversed(range(12))]
    stated.write_text("\n".join(map(json.dumps, rows)))
    for k, prompts in enumerate((plain, stated)):
        folder = StudyFolder(create(images=images, prompts=prompts, output=tmp_path / f"s{k}"))
        for pair in folder.read().pairs:
            assert pixels(folder, pair.images[0])[0, 0, 1] == 10 * int(pair.prompt.split()[1])


def test_a_calibration_is_compared_with_its_original(pipe, tmp_path):
    calibration = scaled_calibration(pipe)
    steps = calibration.sampling.num_inference_steps
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\ntwo green squares")
    options = {"pipeline": pipe, "prompts": prompts, "original_steps": [steps, steps + 1]}
    folder = StudyFolder(create(calibration, output=tmp_path / "s", checks=0, seed=5, **options))
    made = folder.read()
    expected = {
        f"original, {steps} steps": {"strength": 0.0},
        f"original, {steps + 1} steps": {"strength": 0.0, "num_inference_steps": steps + 1},
        f"calibrated, {steps} steps": {"strength": 1.0},
    }
    assert made.conditions == tuple(expected)
    assert len(made.pairs) == 2 * 3
    both = ["a red circle", "two green squares"]
    pictures = {
        condition: generate(pipe, both, calibration=calibration, seed=5, **how)
        for condition, how in expected.items()
    }
    for k, pair in enumerate(made.pairs):
        for condition, name in zip(pair.conditions, pair.images, strict=True):
            picture = np.asarray(enlarged(pictures[condition][k // 3]))
            # The original has no hooks here, and hooks that multiply by 1 there.
            assert abs(pixels(folder, name).astype(int) - picture).max() <= 1
        assert not np.array_equal(*(pixels(folder, name) for name in pair.images))
    assert not has_hooks(pipe.transformer)


def test_without_prompts_a_run_of_the_shipped_pipeline_is_shown_on_unseen_ones(
    finished_run, tmp_path
):
    folder = StudyFolder(create(finished_run, output=tmp_path / "s", num_prompts=4, device="cpu"))
    shown = [pair.prompt for pair in folder.read().pairs if not pair.check]
    calibration = Calibration.from_pretrained(finished_run)
    assert shown == [prompt.text for prompt in unseen_prompts(calibration, 4, 1)]


def lone(root, images):
    (images["calibrated"] / "3.png").unlink()


def no_images(root, images):
    for path in images["calibrated"].iterdir():
        path.unlink()


def another_size(root, images):
    Image.new("RGB", (300, 256)).save(images["calibrated"] / "3.png")


def no_picture(root, images):
    (images["calibrated"] / "3.png").write_text("none")


def no_folder(root, images):
    images["calibrated"] = root / "nowhere"


def one_folder(root, images):
    del images["calibrated"]


def few_prompts(root, images):
    (root / "prompts.txt").write_text("only one")


@pytest.mark.parametrize(
    ("spoil", "error", "said"),
    [
        (lone, StudyError, "same names: 1 are only in one.*3.png"),
        (no_images, StudyError, "has no images"),
        (another_size, StudyError, "differ in size"),
        (no_picture, PromptError, "3.png is not a picture"),
        (no_folder, StudyError, "nowhere' is no folder"),
        (one_folder, StudyError, "at least two folders"),
        (few_prompts, StudyError, "6 images in each folder and 1 different prompts"),
    ],
)
def test_folders_that_do_not_fit_are_refused_and_nothing_is_left(tmp_path, spoil, error, said):
    images = folders(tmp_path)
    (tmp_path / "prompts.txt").write_text("\n".join(texts()), encoding="utf-8")
    spoil(tmp_path, images)
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(error, match=said):
        create(images=images, prompts=tmp_path / "prompts.txt", output=tmp_path / "study")
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"participants": 0}, "participants is 0"),
        ({"participants": 10**6}, "more than 10000"),
        ({"pairs_each": 0}, "pairs_each is 0"),
        ({"pairs_each": 7}, "6 pairs, fewer than the 7"),
        ({"checks": -1}, "checks is -1"),
        ({"checks": 7}, "7 attention checks among 6 pairs"),
        ({"original_steps": [0]}, "original_steps.* is 0"),
        ({"calibration": "some/where"}, "either a calibration .* or folders"),
    ],
)
def test_numbers_that_make_no_study_are_refused(tmp_path, options, said):
    with pytest.raises(StudyError, match=said):
        study(tmp_path, **options)
    assert not (tmp_path / "study").exists()


def test_other_bad_input_is_refused(tmp_path):
    with pytest.raises(StudyError, match="either a calibration"):
        create(output=tmp_path / "study")
    with pytest.raises(StudyError, match="need --prompts"):
        create(images=folders(tmp_path), output=tmp_path / "study")
    with pytest.raises(RunError, match="not an empty folder"):
        create("some/where", output=tmp_path)
    for text, said in ((b"\xff", "not UTF-8"), (b" \n", "is empty"), (None, "Cannot read")):
        path = tmp_path / "consent.txt"
        path.unlink(missing_ok=True)
        if text is not None:
            path.write_bytes(text)
        with pytest.raises(StudyError, match=said):
            create("some/where", output=tmp_path / "study", consent=path)
    with pytest.raises(CalibriError, match="nowhere"):
        create(tmp_path / "nowhere", output=tmp_path / "study")
