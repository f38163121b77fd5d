"""Prompts with a picture that they are instructions for."""

import json

import pytest
from PIL import Image

from calibri.errors import PromptError
from calibri.prompts.files import Prompt, check_disjoint, load_prompts
from calibri.prompts.pictures import load_picture
from calibri.results import Fidelity
from calibri.sampling.sampler import Noise
from calibri.scoring.units import Unit


def paint(path, colour):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 3), colour).save(path)
    return path


def write(path, *pairs):
    lines = [json.dumps({"prompt": text, "image": image}) for text, image in pairs]
    path.write_text("\n".join(lines))
    return path


def test_paths_are_relative_to_the_file_and_an_instruction_counts_with_its_picture(tmp_path):
    paint(tmp_path / "in" / "red.png", "red")
    paint(tmp_path / "in" / "blue.png", "blue")
    paint(tmp_path / "in" / "copy.png", "blue")
    pairs = [("a tree", f"in/{name}.png") for name in ("red", "blue", "copy")]
    red, blue = load_prompts(write(tmp_path / "pairs.jsonl", *pairs))
    assert red.source == str(tmp_path / "in" / "red.png")
    assert (red.text, red.id == blue.id) == (blue.text, False)
    (alone,) = load_prompts(write(tmp_path / "one.jsonl", ("a tree", "in/copy.png")))
    assert alone.id == blue.id
    check_disjoint([red], [blue])
    with pytest.raises(PromptError, match="training prompts too"):
        check_disjoint([red, blue], [alone])


def test_another_picture_under_the_same_name_is_another_prompt(tmp_path):
    path = write(tmp_path / "pairs.jsonl", ("a tree", "a.png"))
    paint(tmp_path / "a.png", "red")
    (before,) = load_prompts(path)
    paint(tmp_path / "a.png", "blue")
    (after,) = load_prompts(path)
    assert before.id != after.id


@pytest.mark.parametrize(
    ("image", "said"),
    [
        ("missing.png", "cannot read the picture .*No such file"),
        ("text.png", "not a picture"),
        (".", "cannot read the picture"),
        ("", "must be the path of a picture"),
        (7, "must be the path of a picture"),
        (["a.png"], "must be the path of a picture"),
        ("cut.png", "not a picture"),
    ],
)
def test_what_is_no_picture_is_refused_with_file_and_line(tmp_path, image, said):
    (tmp_path / "text.png").write_text("no picture")
    whole = paint(tmp_path / "whole.png", "red")
    (tmp_path / "cut.png").write_bytes(whole.read_bytes()[:40])
    path = write(tmp_path / "pairs.jsonl", ("fine", "whole.png"), ("a tree", image))
    with pytest.raises(PromptError, match=said) as caught:
        load_prompts(path)
    assert "pairs.jsonl, line 2" in str(caught.value)


def test_pictures_are_read_upright_and_in_colour(tmp_path):
    picture = Image.new("L", (4, 2))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    picture.save(tmp_path / "a.jpg", exif=exif)
    read = load_picture(tmp_path / "a.jpg")
    assert (read.mode, read.size) == ("RGB", (2, 4))


def test_the_picture_travels_with_a_unit(tmp_path):
    paint(tmp_path / "a.png", "red")
    (prompt,) = load_prompts(write(tmp_path / "pairs.jsonl", ("a tree", "a.png")))
    unit = Unit((), ((0, Noise(prompt, 1)),), ("x",), Fidelity())
    (row,) = Unit.from_json(json.loads(json.dumps(unit.to_json()))).rows
    assert row[1].prompt.source == prompt.source


def test_a_field_of_that_name_from_elsewhere_is_no_source():
    assert Prompt("0", "text", {"image": "x.png"}).source is None
