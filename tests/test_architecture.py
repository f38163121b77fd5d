"""The rooms: how many, what each says and shows, and whether the figure of them is up to date."""

import importlib
import re
from pathlib import Path

import pytest
from benchmarks.import_graph import Source

from benchmarks import architecture

ROOT = Path(__file__).parents[1]
SOURCE = Source(ROOT)
ROOMS = SOURCE.rooms
PACKAGES = [SOURCE.modules["calibri"], *ROOMS]


def by_name(module):
    return module.name


def test_there_are_no_more_rooms_than_can_be_kept_in_mind():
    assert 0 < len(ROOMS) <= 15


@pytest.mark.parametrize("room", ROOMS, ids=by_name)
def test_a_room_says_in_one_sentence_what_it_knows(room):
    documented = importlib.import_module(room.name).__doc__
    assert documented == architecture.sentence(room)  # nothing after the first paragraph
    assert re.fullmatch(r"\S.*\w\.", documented)
    assert not re.search(r"[.!?]\s+[A-Z]", documented)


@pytest.mark.parametrize("package", PACKAGES, ids=by_name)
def test_no_name_of_a_face_hides_a_module(package):
    assert not [name for name in SOURCE.face(package) if f"{package.name}.{name}" in SOURCE.modules]


@pytest.mark.parametrize("package", PACKAGES, ids=by_name)
def test_every_name_of_a_face_is_there(package):
    imported = importlib.import_module(package.name)
    assert [name for name in SOURCE.face(package) if not hasattr(imported, name)] == []


def test_the_figure_is_drawn_from_the_imports_as_they_are():
    committed = (ROOT / architecture.IMAGE).read_bytes()
    assert committed == architecture.draw(SOURCE).encode(), (
        f"{architecture.IMAGE} is out of date. Draw it again: python -m benchmarks.architecture"
    )
