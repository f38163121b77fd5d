"""The structure of the code in figures, read from its syntax alone: nothing is imported.

python -m benchmarks.structure [--root PATH] [--revision REV] [--against REV] [--json]

* Rooms, faces and imports are those of ``benchmarks.import_graph``.
* Layers are those of the import order that ``pyproject.toml`` prescribes. Import levels: modules in
  the longest chain of imports, as it is; modules that import each other in a circle count as one.
  Room levels: the same for rooms and top-level modules.
* Connected pairs: ordered pairs of rooms or top-level modules with an import from the first to the
  second that happens as the module is loaded; "at any time" adds those within functions and under
  ``TYPE_CHECKING``, which all other figures count as well.
* An import past a face names a module inside another room (``calibri.room.module``), or takes one
  from the room that is no name of its face.
* Checks: assertions, ``pytest.raises`` and ``pytest.warns``, calls of ``assert_*`` and ``check*``
  that are not the package's own.
* A patch of our modules: ``monkeypatch.setattr``, ``setitem`` or ``delattr``, or ``mock.patch``, on
  something imported from the package, or on a string that names it.
* A poke: ``obj._name`` where obj is not self or cls, nor a module of others; also such a name
  handed to ``getattr``, ``setattr`` or a patch.
* A name of a face is used if another room or top-level module imports it from there, or a document
  tells users to.
* Places to touch: source files (tests and documents apart) that name one example of a kind, by
  their own name or in code; comments and docstrings do not count. The examples are EXAMPLES: what
  adding another like them takes now. A revision from before an example has no places for it.
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import re
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.import_graph import PACKAGE, Source, longest_chain, parse

# One example of each kind that is added to, by the names that code has for it: a regular expression
# that an identifier, a dotted module or a string constant, in double quotes, has to contain.
EXAMPLES = {
    "family": r"Qwen-?Image|qwen_?image",  # a transformer with costs, loading and foreign formats
    "reward": r"jpeg-|rewards\.jpeg|Jpeg",  # scores images, costs nothing beside the pipeline
    "search method": r'RandomSearch|methods\.random|"random"',  # asks, tells, has no settings
    "fidelity": r"cache_interval|step_?cache|StepCache|check_cache",  # a key, a try, a sampler
    "metric": r"[Ff]rechet",  # a number about the images of a setting, printed and drawn
    "export": r'ia3|IA3|"peft"',  # a file of another tool
    "back-end": r"\bWorkers\b|backends\.processes",  # computes units elsewhere
}

_PRIVATE = re.compile(r"_[A-Za-z]\w*$")
# Public by the documentation of namedtuple.
_NAMEDTUPLE = {"_replace", "_asdict", "_fields", "_make", "_field_defaults"}
_OURS = (PACKAGE, "tests", "benchmarks", "")
_PATCHES = {"setattr", "setitem", "delattr", "delitem", "patch", "object"}


def functions(trees: Iterable[ast.Module]) -> list[tuple[int, str]]:
    """Lines and name of every function, its decorators apart."""
    return [
        (node.end_lineno - node.lineno + 1, node.name)
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.end_lineno
    ]


def private_imports(tree: ast.Module) -> int:
    """Names with an underscore that are imported from our modules, or from tests and benchmarks."""
    return sum(
        bool(_PRIVATE.fullmatch(alias.name))
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        and (node.level or (node.module or "").split(".")[0] in _OURS)
        for alias in node.names
    )


def origins(tree: ast.Module) -> dict[str, str]:
    """The package that each imported name of a file comes from."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.split(".")[0]
                found[alias.asname or top] = top
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                found[alias.asname or alias.name] = (node.module or "").split(".")[0]
    return found


def _root(node: ast.AST) -> str:
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def _called(node: ast.Call) -> str:
    if isinstance(node.func, ast.Attribute):
        return node.func.attr
    return node.func.id if isinstance(node.func, ast.Name) else ""


def patches(tree: ast.Module) -> int:
    """How often something of the package is replaced for a test."""
    known = origins(tree)

    def ours(node: ast.expr) -> bool:
        if isinstance(node, ast.Constant):
            return str(node.value).split(".")[0] == PACKAGE
        return known.get(_root(node)) == PACKAGE

    return sum(
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and _called(node) in _PATCHES
        and bool(node.args)
        and ours(node.args[0])
        for node in ast.walk(tree)
    )


def pokes(tree: ast.Module) -> int:
    """How often an attribute with an underscore is used from outside."""
    foreign = {name for name, top in origins(tree).items() if top not in _OURS}

    def private(name: object) -> bool:
        return isinstance(name, str) and bool(_PRIVATE.fullmatch(name)) and name not in _NAMEDTUPLE

    count = 0
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and private(node.attr):
            direct = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            count += not direct and _root(node) not in foreign
        elif isinstance(node, ast.Call) and _called(node) in {"getattr", "hasattr", *_PATCHES}:
            given = [a for a in node.args[1:2] if _root(node.args[0]) not in foreign]
            count += any(isinstance(a, ast.Constant) and private(a.value) for a in given)
    return count


def words(tree: ast.Module) -> Iterator[str]:
    """Identifiers, dotted modules and string constants; docstrings and comments apart."""
    documents = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if id(node) not in documents:
                yield f'"{node.value}"'
            continue
        for name in ("id", "attr", "name", "arg", "module", "asname"):
            if isinstance(value := getattr(node, name, None), str):
                yield value


def places(source: Source) -> dict[str, list[str]]:
    """For every kind of EXAMPLES the source files that name its example."""
    top = source.root / "src" / source.package
    text: dict[str, list[str]] = {}
    for path in sorted(top.rglob("*")):
        inside = path.relative_to(top)
        if path.suffix in (".py", ".pyi"):
            # The name of a file speaks for it too.
            module = ".".join(inside.with_suffix("").parts)
            text[inside.as_posix()] = [module, *words(parse(path))]
        elif path.suffix == ".jinja":
            text[inside.as_posix()] = path.read_text(encoding="utf-8").split()
    return {
        kind: [path for path, found in text.items() if any(re.search(names, w) for w in found)]
        for kind, names in EXAMPLES.items()
    }


def face_names(source: Source) -> dict[str, dict[str, bool]]:
    """For every room the names of its face, and whether anybody uses them."""
    taken = set()
    for module in source.modules.values():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ImportFrom) and not node.level:
                taken |= {(module.top, f"{node.module}.{alias.name}") for alias in node.names}
    documents = [*sorted((source.root / "docs").rglob("*.md")), source.root / "README.md"]
    for path in documents:
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        for room, names in re.findall(rf"from ({source.package}\.\w+) import ([\w, ]+)", text):
            taken |= {("", f"{room}.{name.strip()}") for name in names.split(",")}
    return {
        room.top: {
            name: any(n == f"{room.name}.{name}" and where != room.top for where, n in taken)
            for name in source.face(room)
        }
        for room in source.rooms
    }


def _faces(faces: dict[str, dict[str, bool]]) -> dict[str, str]:
    sizes = sorted(map(len, faces.values()), reverse=True)
    widest = max(faces, key=lambda room: len(faces[room]), default="none")
    return {
        "names on faces": str(sum(sizes)),
        "median face": f"{statistics.median(sizes or [0]):g}",
        "widest face": f"{max(sizes, default=0)} ({widest})",
        "names on faces that nobody uses": str(
            sum(not used for names in faces.values() for used in names.values())
        ),
    }


def _trees(root: Path, *folders: str) -> list[ast.Module]:
    return [parse(p) for folder in folders for p in sorted((root / folder).rglob("*.py"))]


def _checks(tree: ast.Module) -> int:
    names = re.compile(r"raises|warns|assert_\w+|check\w*")
    known = origins(tree)
    return sum(
        isinstance(node, ast.Assert)
        or (
            isinstance(node, ast.Call)
            and bool(names.fullmatch(_called(node)))
            and known.get(_root(node.func)) != PACKAGE
        )
        for node in ast.walk(tree)
    )


def figures(source: Source) -> dict[str, Any]:
    """Every figure of a checkout, by its label."""
    modules = list(source.modules.values())
    lines = {m.name: len(m.path.read_text(encoding="utf-8").splitlines()) for m in modules}
    lengths = functions(m.tree for m in modules)
    longest_file = max(lines, key=lambda name: lines[name])
    between = source.between()
    tests = _trees(source.root, "tests")
    outside = tests + _trees(source.root, "benchmarks")
    named, faces = places(source), face_names(source)
    return {
        "rooms": len(source.rooms),
        "modules outside of rooms": len(source.ground),
        "modules": len(modules),
        "lines": sum(lines.values()),
        "layers of the import order": layers(source.root),
        "import levels": longest_chain(source.edges),
        "room levels": longest_chain(_room_edges(between)),
        "connected pairs": len(source.between(at_load=True)),
        "connected pairs at any time": len(between),
        "connected pairs at any time, of rooms alone": _rooms_alone(source, between),
        "imports between them": sum(len(names) for names in between.values()),
        "imports past a face": len(source.past_faces()),
        **_faces(faces),
        "longest function": "{} ({})".format(*max(lengths, default=(0, "none"))),
        "median function": f"{statistics.median(length for length, _ in lengths or [(0, '')]):g}",
        "longest file": f"{lines[longest_file]} ({longest_file.partition('.')[2]})",
        "private imports in the package": sum(private_imports(m.tree) for m in modules),
        "private imports in tests and benchmarks": sum(map(private_imports, outside)),
        "tests": sum(name.startswith("test_") for _, name in functions(tests)),
        "assertions": sum(isinstance(n, ast.Assert) for tree in tests for n in ast.walk(tree)),
        "checks": sum(map(_checks, tests)),
        "patches of our modules in tests": sum(map(patches, tests)),
        "pokes at private attributes in tests": sum(map(pokes, tests)),
        "pokes at private attributes in benchmarks": sum(
            map(pokes, _trees(source.root, "benchmarks"))
        ),
        **{f"places to touch: {kind}": len(paths) for kind, paths in named.items()},
        "places": named,
        "faces": faces,
    }


def layers(root: Path) -> int:
    """Lines of the longest import order in ``pyproject.toml``; 0 where there is none."""
    path = root / "pyproject.toml"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    # Python 3.10 has no reader of TOML, but a list of strings is a list of strings.
    lists = re.findall(r"^layers = (\[.*?^\])", text, re.MULTILINE | re.DOTALL)
    return max((len(ast.literal_eval(found)) for found in lists), default=0)


def _room_edges(pairs: Iterable[tuple[str, str]]) -> dict[str, set[str]]:
    edges: dict[str, set[str]] = {}
    for a, b in pairs:
        edges.setdefault(a, set()).add(b)
        edges.setdefault(b, set())
    return edges


def _rooms_alone(source: Source, pairs: Iterable[tuple[str, str]]) -> int:
    rooms = {room.top for room in source.rooms}
    return sum(a in rooms and b in rooms for a, b in pairs)


def at_revision(root: Path, revision: str) -> dict[str, Any]:
    """The figures of a revision of the repository at ``root``."""
    done = subprocess.run(["git", "-C", root, "archive", revision], capture_output=True)
    if done.returncode:
        reason = done.stderr.decode(errors="replace").strip()
        raise SystemExit(f"git could not read {revision!r}: {reason}")
    with (
        tempfile.TemporaryDirectory() as folder,
        tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive,
    ):
        archive.extractall(folder, filter="data")
        return figures(Source(Path(folder)))


def table(columns: dict[str, dict[str, Any]]) -> str:
    """The figures of one or two checkouts side by side."""
    rows = [["", *columns]]
    for label in next(iter(columns.values())):
        if label not in ("places", "faces"):
            rows.append([label, *(str(column[label]) for column in columns.values())])
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            [row[0].ljust(widths[0])]
            + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        ).rstrip()
        for row in rows
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, default=Path(__file__).parents[1])
    parser.add_argument("--revision", help="count this revision, not the files as they are")
    parser.add_argument("--against", help="count this revision too, before the other")
    parser.add_argument("--json", action="store_true", help="also the places and the faces")
    options = parser.parse_args(arguments)
    columns = {}
    if options.against:
        columns[options.against] = at_revision(options.root, options.against)
    if options.revision:
        columns[options.revision] = at_revision(options.root, options.revision)
    else:
        columns["now"] = figures(Source(options.root))
    print(json.dumps(columns, indent=2) if options.json else table(columns), file=sys.stdout)


if __name__ == "__main__":
    main()
