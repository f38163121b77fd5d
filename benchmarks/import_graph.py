"""Which module imports which, and what each package shows: read from the syntax alone.

* A room is a package at the top of ``src/calibri``. The face of a package is what its
  ``__init__.pyi``, or else its ``__init__.py``, imports from its own modules.
* A name taken from a face counts as an import of the module that defines it.
* ``calibri/__init__`` itself, which gathers the public names, is in no room and is left out of
  everything between rooms.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

PACKAGE = "calibri"


@dataclass(frozen=True)
class Module:
    """One file of the package, with its syntax."""

    name: str
    path: Path
    tree: ast.Module

    @property
    def is_package(self) -> bool:
        return self.path.stem == "__init__"

    @property
    def top(self) -> str:
        """The room or top-level module that this is part of; empty for the package itself."""
        return self.name.split(".")[1] if "." in self.name else ""

    @cached_property
    def stub(self) -> ast.Module | None:
        path = self.path.with_suffix(".pyi")
        return parse(path) if path.exists() else None


@dataclass(frozen=True)
class Import:
    """One name that a module imports.

    Attributes:
        spelled: the module that is named, as it is named.
        target: the module that defines what is imported.
        at_load: whether it is imported as soon as the importer is: not within a function, and not
            for the type checker alone.
    """

    importer: Module
    spelled: str
    name: str
    target: Module
    at_load: bool = True


@dataclass
class Source:
    """The modules of a checkout.

    Attributes:
        root: the folder that holds ``src``, ``tests`` and ``benchmarks``.
    """

    root: Path
    package: str = PACKAGE
    modules: dict[str, Module] = field(init=False)

    def __post_init__(self) -> None:
        top = self.root / "src" / self.package
        if not top.is_dir():
            raise SystemExit(f"There is no {top}. Name the root of a checkout.")
        self.modules = {}
        for path in sorted(top.rglob("*.py")):
            parts = path.relative_to(top.parent).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            self.modules[name] = Module(name, path, parse(path))

    @property
    def rooms(self) -> list[Module]:
        return [m for m in self.modules.values() if m.is_package and m.name.count(".") == 1]

    @property
    def ground(self) -> list[Module]:
        """Modules that stand beside the rooms."""
        return [m for m in self.modules.values() if not m.is_package and m.name.count(".") == 1]

    def face(self, package: Module) -> dict[str, Module]:
        """Names that a package re-exports, with the module that each is taken from."""
        tree = package.stub or package.tree
        inside = f"{package.name}."
        found = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                base = _base(package, node)
                if base.startswith(inside) and base in self.modules:
                    for alias in node.names:
                        found[alias.asname or alias.name] = self.defining(base, alias.name)
        return found

    def defining(self, base: str, name: str) -> Module:
        """The module that ``from base import name`` gets its name from."""
        module = self.modules[base]
        if module.is_package and name in (face := self.face(module)):
            return face[name]
        return self.modules.get(f"{base}.{name}", module)

    @cached_property
    def imports(self) -> list[Import]:
        return [found for module in self.modules.values() for found in self._imports(module)]

    def _imports(self, module: Module) -> Iterator[Import]:
        later = _later(module.tree)
        for node in (*ast.walk(module.tree), *(ast.walk(module.stub) if module.stub else ())):
            at_load = id(node) not in later
            if isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.name in self.modules:
                        yield Import(module, alias.name, "", self.modules[alias.name], at_load)
            elif isinstance(node, ast.ImportFrom) and (base := _base(module, node)) in self.modules:
                for alias in node.names:
                    target = self.defining(base, alias.name)
                    yield Import(module, base, alias.name, target, at_load)

    @cached_property
    def edges(self) -> dict[str, set[str]]:
        """The modules that each module imports."""
        edges: dict[str, set[str]] = {name: set() for name in self.modules}
        for found in self.imports:
            if found.target is not found.importer:
                edges[found.importer.name].add(found.target.name)
        return edges

    def between(self, *, at_load: bool = False) -> dict[tuple[str, str], set[tuple[str, str]]]:
        """Imports between rooms: their (importer, imported) modules, by the pair of rooms.

        Args:
            at_load: leave out what is imported within functions or for the type checker alone.
        """
        pairs: dict[tuple[str, str], set[tuple[str, str]]] = {}
        for found in self.imports:
            a, b = found.importer.top, found.target.top
            if a and b and a != b and (found.at_load or not at_load):
                names = (found.importer.name, found.target.name)
                pairs.setdefault((a, b), set()).add(names)
        return pairs

    def past_faces(self) -> list[tuple[str, str]]:
        """(importer, module of another room) of the imports that do not go by a face."""
        rooms = {room.name: room for room in self.rooms}
        found = set()
        for one in self.imports:
            room = rooms.get(".".join(one.spelled.split(".")[:2]))
            if not one.importer.top or room is None or one.importer.top == room.top:
                continue
            submodule = f"{one.spelled}.{one.name}"
            if one.spelled != room.name:
                found.add((one.importer.name, one.spelled))
            elif submodule in self.modules and one.name not in self.face(room):
                found.add((one.importer.name, submodule))
        return sorted(found)


def parse(path: Path) -> ast.Module:
    """Read a file's syntax."""
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def _later(tree: ast.Module) -> set[int]:
    """Ids of the nodes within functions and under ``TYPE_CHECKING``."""
    return {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        or (isinstance(node, ast.If) and _last_name(node.test) == "TYPE_CHECKING")
        for inner in ast.walk(node)
    }


def _last_name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def _base(module: Module, node: ast.ImportFrom) -> str:
    """The absolute name of the module after ``from``."""
    if not node.level:
        return node.module or ""
    parts = module.name.split(".")
    parts = parts[: len(parts) - node.level + module.is_package]
    return ".".join([*parts, *([node.module] if node.module else [])])


def longest_chain(edges: dict[str, set[str]]) -> int:
    """Nodes in the longest path, where nodes on a circle count as one."""
    part_of = {name: part for part, names in enumerate(components(edges)) for name in names}
    depth: dict[int, int] = {}
    # A component is found after all that it reaches, so in this order what it imports is known.
    for part in sorted(set(part_of.values())):
        below = {
            part_of[other]
            for name, others in edges.items()
            if part_of[name] == part
            for other in others
        }
        depth[part] = 1 + max((depth[other] for other in below - {part}), default=0)
    return max(depth.values(), default=0)


def components(edges: dict[str, set[str]]) -> list[list[str]]:
    """Strongly connected components (Tarjan 1972), each after those that it reaches."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in sorted(edges[name]):
            if other not in index:
                visit(other)
            if other in stack:
                low[name] = min(low[name], low[other])
        if low[name] == index[name]:
            start = stack.index(name)
            found.append(stack[start:])
            del stack[start:]

    for name in sorted(edges):
        if name not in index:
            visit(name)
    return found
