"""``calibri gallery``: finished runs and calibration folders on one page."""

import html
import json
import re
import shutil

import pytest

from calibri.artifact.calibration import Calibration
from tests.tiny import scaled_calibration


def test_every_calibration_is_shown_with_its_figures_and_pictures(
    calibri, finished_run, pipe, tmp_path
):
    shutil.copytree(finished_run, tmp_path / "runs" / "tiny")
    scaled_calibration(pipe).save_pretrained(tmp_path / "bare")
    result = calibri("gallery", "tiny", "bare", "--output", "index.html", "--title", "Ours & <b>")
    assert (result.exit_code, result.stdout) == (0, "index.html\n")
    page = (tmp_path / "index.html").read_text()
    assert "Ours &amp; &lt;b&gt;" in page
    assert page.count("<section>") == 2
    first, second = page.split("<section>")[1:]
    made = Calibration.from_pretrained(finished_run)
    assert f"<dd>{made.sampling.num_inference_steps}</dd>" in first
    assert first.count('<div class="key ') == len({c.reward for c in made.evaluation.comparisons})
    assert "data:image/png;base64," in first
    assert "It was not evaluated." in second
    assert "<img" not in second
    for part, source in ((first, "runs/tiny"), (second, "bare")):
        line = html.unescape(re.search("<pre>(.*)</pre>", part)[1])
        assert line == f'calibri.load(pipe, "{source}")'
        assert Calibration.from_pretrained(tmp_path / source)


def test_texts_of_a_calibration_are_escaped(calibri, pipe, tmp_path):
    calibration = scaled_calibration(pipe).model_copy(
        update={"base_model": "<script>alert(1)</script>"}
    )
    calibration.save_pretrained(tmp_path / "made")
    calibri("gallery", "made")
    page = (tmp_path / "gallery.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_the_pictures_of_a_run_are_found_from_its_calibration_too(calibri, finished_run, tmp_path):
    calibri("gallery", finished_run, "--output", "a.html")
    calibri("gallery", finished_run / "calibration", "--output", "b.html")
    pages = [(tmp_path / name).read_text().count("<img") for name in ("a.html", "b.html")]
    assert pages[0] == pages[1] > 0


@pytest.mark.parametrize("damage", ["missing", "json"])
def test_what_cannot_be_read_is_told_and_no_page_written(damage, calibri, pipe, tmp_path):
    folder = tmp_path / "made"
    if damage == "json":
        scaled_calibration(pipe).save_pretrained(folder)
        (folder / "calibri.json").write_text(json.dumps({"format_version": 2}))
    result = calibri("gallery", "./made")
    assert result.exit_code == 3, result.output
    assert not (tmp_path / "gallery.html").exists()
