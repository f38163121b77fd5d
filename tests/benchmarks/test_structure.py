"""The counts of the structure, and the figure, on a package small enough to count by hand."""

import json
import subprocess
import xml.etree.ElementTree as ElementTree

import pytest
from benchmarks.import_graph import Source, components, longest_chain
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import architecture, structure

FILES = {
    "pyproject.toml": '[[tool.importlinter.contracts]]\nlayers = [\n  "b",\n  "a | c",  # low\n]\n',
    "src/calibri/__init__.py": '"""A tiny package."""\n',
    "src/calibri/__init__.pyi": "from .b.deep import run as run\n",
    "src/calibri/errors.py": '"""Errors."""\n\n\nclass Failed(Exception):\n    pass\n',
    # prompts: its face stands in a stub.
    "src/calibri/prompts/__init__.py": '"""Texts & <words>."""\n',
    "src/calibri/prompts/__init__.pyi": "from .inner import first as first\n",
    "src/calibri/prompts/inner.py": (
        "from calibri.errors import Failed\n\n\n"
        "def first():\n    return Failed\n\n\n"
        "@staticmethod\ndef second():\n    a = 1\n    b = 2\n    return a + b\n"
    ),
    # b: its face stands in its __init__, by way of a package within.
    "src/calibri/b/__init__.py": '"""Runs."""\n\nfrom calibri.b.deep import run\n',
    "src/calibri/b/deep/__init__.py": "from .core import run\n",
    "src/calibri/b/deep/core.py": (
        "from calibri.prompts import first\n\n\n"
        "def run():\n    from .. import helper\n\n    return first, helper\n"
    ),
    "src/calibri/b/helper.py": "import calibri.b.deep.core\n",
    # c goes past the faces of both others, twice by an inner path, once by the room.
    "src/calibri/c/__init__.py": '"""Others: more."""\n',
    "src/calibri/c/past.py": (
        "from typing import TYPE_CHECKING\n\n"
        "from calibri.b import run\n"
        "from calibri.prompts import first, inner\n"
        "from calibri.prompts.inner import second, first as again\n\n"
        "if TYPE_CHECKING:\n    from calibri.errors import Failed\n    import calibri.b.deep.core\n"
    ),
    "tests/test_one.py": (
        "import numpy as np\n"
        "import pytest\n"
        "from calibri.c import check, past\n"
        "from calibri.c.past import _hidden, shown\n\n\n"
        "def test_it(monkeypatch):\n"
        '    """A docstring with assert True."""\n'
        '    monkeypatch.setattr(past, "run", None)\n'
        '    monkeypatch.setattr("calibri.b.core.run", None)\n'
        '    monkeypatch.setattr(np, "_core", None)\n'
        '    monkeypatch.setenv("calibri", "x")\n'
        "    with pytest.raises(ValueError):\n        past._run(shown)\n"
        "    np.testing.assert_allclose(1, check(1))\n"
        "    assert past.__name__ and past.point._replace(x=1)\n\n\n"
        "class TestMore:\n    def test_that(self):\n"
        "        assert self._own is np._core\n"
        '        assert getattr(self.other._x, "_y") == "_z"\n\n'
        "    def helper(self):\n        pass\n"
    ),
    "benchmarks/one.py": "from tests.test_one import _all\n\n_all.x._y\n",
}


@pytest.fixture
def root(tmp_path):
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return tmp_path


def test_rooms_faces_and_what_stands_beside_them(root):
    source = Source(root)
    assert [room.top for room in source.rooms] == ["b", "c", "prompts"]
    assert [module.top for module in source.ground] == ["errors"]
    faces = {
        room.top: {name: module.name for name, module in source.face(room).items()}
        for room in source.rooms
    }
    assert faces == {
        "b": {"run": "calibri.b.deep.core"},
        "c": {},
        "prompts": {"first": "calibri.prompts.inner"},
    }


def test_a_stub_is_the_face_even_beside_other_imports(root):
    init = root / "src/calibri/prompts/__init__.py"
    init.write_text("from calibri.prompts.inner import second\n", encoding="utf-8")
    source = Source(root)
    assert list(source.face(source.modules["calibri.prompts"])) == ["first"]


def test_imports_lead_to_the_module_that_defines_the_name(root):
    edges = Source(root).edges
    assert edges["calibri"] == {"calibri.b.deep.core"}
    assert edges["calibri.b.deep.core"] == {"calibri.prompts.inner", "calibri.b.helper"}
    assert edges["calibri.c.past"] == {
        "calibri.b.deep.core",
        "calibri.prompts.inner",
        "calibri.errors",
    }


def test_pairs_of_rooms(root):
    source = Source(root)
    assert set(source.between(at_load=True)) == {
        ("b", "prompts"),
        ("c", "b"),
        ("c", "prompts"),
        ("prompts", "errors"),
    }
    assert set(source.between()) - set(source.between(at_load=True)) == {("c", "errors")}


def test_imports_past_a_face(root):
    assert Source(root).past_faces() == [
        ("calibri.c.past", "calibri.b.deep.core"),
        ("calibri.c.past", "calibri.prompts.inner"),
    ]


def test_every_figure(root):
    counted = structure.figures(Source(root))
    del counted["places"]
    assert counted.pop("faces") == {"b": {"run": True}, "c": {}, "prompts": {"first": True}}
    assert counted == {
        "rooms": 3,
        "modules outside of rooms": 1,
        "modules": 10,
        "lines": 41,
        "layers of the import order": 2,
        # past -> {core, helper} -> inner -> errors
        "import levels": 4,
        "room levels": 4,
        "connected pairs": 4,
        "connected pairs at any time": 5,
        "connected pairs at any time, of rooms alone": 3,
        "imports between them": 5,
        "imports past a face": 2,
        "names on faces": "2",
        "median face": "1",
        "widest face": "1 (b)",
        "names on faces that nobody uses": "0",
        "longest function": "4 (second)",
        "median function": "4",
        "longest file": "12 (prompts.inner)",
        "private imports in the package": 0,
        "private imports in tests and benchmarks": 2,
        "tests": 2,
        "assertions": 3,
        "checks": 5,
        "patches of our modules in tests": 2,
        # past._run, self.other._x and the string in getattr
        "pokes at private attributes in tests": 3,
        "pokes at private attributes in benchmarks": 1,
        **{f"places to touch: {kind}": 0 for kind in structure.EXAMPLES},
    }


def test_a_place_names_the_example_in_code_and_not_in_words(root):
    package = root / "src/calibri"
    (package / "c" / "ia3.py").write_text("def save():\n    '''ia3'''\n", encoding="utf-8")
    (package / "c" / "formats.py").write_text('KNOWN = {"ia3": 1}\n', encoding="utf-8")
    (package / "b" / "use.py").write_text("from calibri.c import ia3\n", encoding="utf-8")
    (package / "c" / "card.jinja").write_text("{{ frechet }}\n", encoding="utf-8")
    (root / "tests/test_ia3.py").write_text("ia3 = 1\n", encoding="utf-8")
    found = structure.places(Source(root))
    # A file that bears the name was made for the example, whatever stands in it.
    assert found["export"] == ["b/use.py", "c/formats.py", "c/ia3.py"]
    assert found["metric"] == ["c/card.jinja"]
    assert found["reward"] == []


def reachable(edges, start):
    found, new = set(), {start}
    while new:
        found |= new
        new = {b for a in new for b in edges[a]} - found
    return found


@given(st.sets(st.tuples(st.integers(0, 6), st.integers(0, 6))))
def test_the_longest_chain_by_trying_all(pairs):
    edges = {str(a): {str(y) for x, y in pairs if x == a} for a in range(7)}
    reach = {name: reachable(edges, name) for name in edges}
    circle = {a: frozenset(b for b in edges if a in reach[b] and b in reach[a]) for a in edges}

    def chain(part):
        steps = {circle[b] for a in part for b in edges[a]} - {part}
        return 1 + max(map(chain, steps), default=0)

    assert longest_chain(edges) == max(map(chain, circle.values()))
    assert {frozenset(part) for part in components(edges)} == set(circle.values())


def git(root, *arguments):
    identity = ["-c", "user.name=n", "-c", "user.email=e@example.com"]
    subprocess.run(["git", "-C", root, *identity, *arguments], check=True, capture_output=True)


def test_a_revision_beside_the_files_as_they_are(root, capsys):
    git(root, "init", "-q")
    git(root, "add", ".")
    git(root, "commit", "-q", "-m", "one")
    (root / "src/calibri/d").mkdir()
    (root / "src/calibri/d/__init__.py").write_text("", encoding="utf-8")
    structure.main(["--root", str(root), "--against", "HEAD"])
    header, rooms, *_ = capsys.readouterr().out.splitlines()
    assert header.split() == ["HEAD", "now"]
    assert rooms.split() == ["rooms", "3", "4"]
    structure.main(["--root", str(root), "--revision", "HEAD", "--json"])
    assert json.loads(capsys.readouterr().out)["HEAD"]["rooms"] == 3
    with pytest.raises(SystemExit, match=r"git could not read 'none'"):
        structure.main(["--root", str(root), "--against", "none"])


def test_a_folder_that_is_no_checkout_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="Name the root of a checkout"):
        Source(tmp_path)


def test_the_figure_shows_every_room_name_and_import(root, capsys):
    out = root / "figure.svg"
    architecture.main(["--root", str(root), "--out", str(out)])
    drawn = ElementTree.fromstring(out.read_text(encoding="utf-8"))
    said = [element.text for element in drawn.iter() if element.text]
    # The order of the data first; a room without a place in it comes after.
    rooms = [one for one in said if one in ("prompts", "b", "c", "ground floor")]
    assert rooms == ["prompts", "b", "c", "ground floor"]
    assert {"Texts & <words>.", "first", "run", "past", "errors"} <= set(said)
    assert sorted(one for one in said if " imports " in one) == [
        "b imports prompts: 1",
        "c imports b: 1",
        "c imports prompts: 1",
    ]
    assert out.read_text(encoding="utf-8") == architecture.draw(Source(root))


def test_names_that_do_not_fit_are_counted():
    names = [f"name_{number}" for number in range(9)]
    lines = architecture.fitted(names, 30, 2)
    shown = " ".join(lines)
    assert len(lines) == 2
    assert max(map(len, lines)) <= 30
    assert shown.endswith(f"and {9 - shown.count('name_')} more")
    assert architecture.fitted(names[:2], 30, 2) == ["name_0 ·  name_1"]
