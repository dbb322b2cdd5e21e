"""The house stands as it is drawn: imports run along the order on docs/architecture.md, and never in a circle."""

from __future__ import annotations

import ast
import importlib
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "whitebox_crate"
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
# Each line of the block is a floor: its rooms import from the floors above the line and from each other.
FLOORS = [line.split() for line in re.search(r"<!-- floors -->\n```\w*\n(.*?)```", PAGE, re.DOTALL)[1].splitlines()]
LEVEL = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports(name: str) -> set[str]:
    """The modules of the package that one imports, anywhere in its text, those for type checkers included."""
    found: set[str] = set()
    package = name if MODULES[name].name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            found |= {f"{base}.{alias.name}" if f"{base}.{alias.name}" in MODULES else base for alias in node.names}
    return found & MODULES.keys() - {name}


IMPORTS = {name: imports(name) for name in MODULES}


def room_of(name: str) -> str:
    return name.split(".")[1] if "." in name else ""


def test_every_room_has_its_floor() -> None:
    assert sorted(LEVEL) == sorted({room_of(name) for name in MODULES} - {"", "__main__"})


def test_every_room_is_described() -> None:
    described = set(re.findall(r"^\| `(\w+)` \| \S", PAGE, re.MULTILINE))
    assert {room for room in LEVEL if not room.startswith("_")} <= described <= LEVEL.keys()


def test_no_arrow_runs_upward() -> None:
    """The core never imports an application: that is a line of this, for applications are on the last floors."""
    upward = [
        f"{name} imports {other}"
        for name, others in IMPORTS.items()
        for other in others
        if room_of(name) not in ("", "__main__") and LEVEL[room_of(other)] > LEVEL[room_of(name)]
    ]
    assert not upward


def test_no_circle() -> None:
    """A package's own `__init__`, which only gathers names, is not what its modules import."""
    gathered = {name for name, path in MODULES.items() if path.name == "__init__.py"}
    graph = {
        name: {other for other in others if other not in gathered or not name.startswith(other + ".")}
        for name, others in IMPORTS.items()
    }
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_nothing_is_imported_inside_a_function() -> None:
    inside = [
        f"{name}, line {node.lineno}"
        for name, path in MODULES.items()
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert not inside


def test_a_module_is_not_called_as_what_it_exports() -> None:
    twice = [
        f"{name}.{node.name}"
        for name, path in MODULES.items()
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name.rpartition(".")[2]
    ]
    assert not twice


def test_the_first_line_of_every_module_says_what_it_is() -> None:
    without = [name for name, path in MODULES.items() if not ast.get_docstring(ast.parse(path.read_text("utf-8")))]
    assert not without


LAZY = [name for name, others in IMPORTS.items() if "whitebox_crate._lazy" in others]


@pytest.mark.parametrize("name", LAZY)
def test_lazy_names_are_those_that_type_checkers_see(name: str) -> None:
    package = importlib.import_module(name)
    checked = {
        node.module: [alias.name for alias in node.names]
        for block in ast.parse(MODULES[name].read_text(encoding="utf-8")).body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
    }
    assert checked == package._NAMES
    assert sorted(sum(checked.values(), ["__version__"] * hasattr(package, "__version__"))) == sorted(package.__all__)
    assert all(getattr(package, public) is not None for public in package.__all__)
    assert set(package.__all__) <= set(dir(package))
