"""What pages speak of is there: names, files, links; the rooms and their order."""

import ast
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "calibri"
ARCHITECTURE = ROOT / "docs" / "architecture.md"
PAGES = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "training/README.md")),
    *sorted(ROOT.glob("docs/**/*.md")),
]
NAMED = re.compile(r"\bcalibri(?:\.[A-Za-z_]\w*)+")
IMPORTED = re.compile(r"\bfrom (calibri[\w.]*) import ([\w, ]+)")
LINKED = re.compile(r"\]\((?!\w+:)([^)#\s]*)#?([^)\s]*)\)")
PLACED = re.compile(r"(?<![\w/.])(?:benchmarks|docs|src|tests|training)/[\w/.-]*\w")
FILE = re.compile(r"`(\w[\w/]*\.py)`")
# A file of the package and what the same line says is in it.
ROW = re.compile(r"^\| `([\w/]+\.py)` \| ([^|]+) \|", re.MULTILINE)
OF_FILE = re.compile(r"((?:`[A-Za-z_][\w.]*`(?:,| and)? )+)of `([\w/]+\.py)`")
CODE = re.compile(r"`([A-Za-z_][\w.]*)`")


def name_of(page):
    return str(page.relative_to(ROOT))


def found(dotted):
    """The object of a dotted name; ModuleNotFoundError or AttributeError without one."""
    first, *rest = dotted.split(".")
    value, path = importlib.import_module(first), first
    for part in rest:
        path = f"{path}.{part}"
        value = getattr(value, part) if hasattr(value, part) else importlib.import_module(path)
    return value


def defined(file):
    """Functions, classes, methods and constants of a file, as `name` and `Class.name`."""
    names = set()
    for node in ast.parse((SOURCE / file).read_text(encoding="utf-8")).body:
        names |= _bound(node)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{name}" for inner in node.body for name in _bound(inner)}
    return names


def _bound(node):
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return {target.id for target in targets if isinstance(target, ast.Name)}


def anchors(page):
    """What the headings of a page can be linked by."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_names_and_links_of_a_page_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for dotted in set(NAMED.findall(text)) if page.name != "CHANGELOG.md" else ():
        found(dotted)  # changes also name what is no more
    for module, names in IMPORTED.findall(text):
        for name in names.split(","):
            found(f"{module}.{name.strip()}")
    for path in PLACED.findall(text):
        assert (ROOT / path).exists(), path
    for path, anchor in LINKED.findall(re.sub("`[^`\n]*`", "", text)):
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), path
        assert not anchor or anchor in anchors(target), f"{path}#{anchor}"


def test_the_page_of_the_architecture_names_what_its_files_define():
    text = ARCHITECTURE.read_text(encoding="utf-8")
    rows = [(file, names) for file, names in ROW.findall(text)]
    rows += [(file, names) for names, file in OF_FILE.findall(text)]
    assert len(rows) > 30
    for file, names in rows:
        missing = set(CODE.findall(names)) - defined(file)
        assert not missing, f"{file} has no {missing}"
    for file in FILE.findall(text):
        assert (SOURCE / file).is_file() or (ROOT / file).is_file() or file == "__init__.py", file


def test_the_page_of_the_architecture_has_the_rooms_and_the_order_of_the_imports():
    text = ARCHITECTURE.read_text(encoding="utf-8")
    rooms = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", text, re.MULTILINE))
    packages = [path.parent.name for path in SOURCE.glob("*/__init__.py")]
    assert rooms == {name: importlib.import_module(f"calibri.{name}").__doc__ for name in packages}
    floor = text.split("**ground floor**")[1].split("\n\n")[0]
    modules = {path.stem for path in SOURCE.glob("*.py")} - {"__init__"}
    assert set(re.findall(r"`(\w+)`", floor)) == modules
    contract = (ROOT / "pyproject.toml").read_text(encoding="utf-8").split("layers = [")[1]
    layers = re.findall(r'^  "(.*)",$', contract.split("]")[0], re.MULTILINE)
    assert "\n".join(f"      {layer}" for layer in layers) in text
