"""Every name that the documentation prints can be imported, as it is printed."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterable
from pathlib import Path

import pytest

import whitebox_crate
from whitebox_crate._deprecated import MODULES, NAMES, PACKAGE
from whitebox_crate.errors import MissingExtraError

ROOT = Path(__file__).parents[1]
CHANGELOG = ROOT / "CHANGELOG.md"  # which speaks of names that are gone
PAGES = [page for page in (*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))) if page != CHANGELOG]
PRINTED = re.compile(r"^\.\. (?:auto(?:function|class|exception)|py:data):: (\S+)$", re.MULTILINE)
DOTTED = re.compile(r"(?<![\w/])whitebox_crate(?:\.[A-Za-z]\w*)+")


def is_found(name: str) -> bool:
    """Whether a user who imports the package and its modules finds the name there."""
    package, *parts = name.split(".")
    value: object = importlib.import_module(package)
    for part in parts:
        try:
            if not hasattr(value, part) and hasattr(value, "__path__"):
                importlib.import_module(f"{value.__name__}.{part}")  # which makes it an attribute
        except MissingExtraError:
            return True  # a module of the package that asks for what is not installed
        except ModuleNotFoundError:
            return False
        if not hasattr(value, part):
            return False
        value = getattr(value, part)
    return True


def is_old(name: str) -> bool:
    """Whether it is found only because old names go on working."""
    return any(f"{name}.".startswith(f"{PACKAGE}.{old}.") for old in (*MODULES, *NAMES))


def missing(names: Iterable[str]) -> list[str]:
    return [name for name in dict.fromkeys(names) if is_old(name) or not is_found(name)]


REFERENCE = [
    name
    for page in sorted((ROOT / "docs" / "reference").glob("*.md"))
    for name in PRINTED.findall(page.read_text(encoding="utf-8"))
]


def test_every_name_of_the_reference_is_found() -> None:
    assert len(REFERENCE) > 100
    assert not missing(REFERENCE)


def test_no_name_of_the_reference_is_printed_twice() -> None:
    assert len(REFERENCE) == len(set(REFERENCE))


def public() -> set[str]:
    """What the package and its packages export, each by its shortest name; two rooms have pages of their own."""
    rooms = {m.name for m in pkgutil.iter_modules(whitebox_crate.__path__) if m.ispkg} - {"cli", "timm_bridge"}
    modules = [whitebox_crate, *(importlib.import_module(f"{PACKAGE}.{room}") for room in rooms)]
    exported = {f"{m.__name__}.{name}" for m in modules for name in getattr(m, "__all__", ())}
    top = set(whitebox_crate.__all__)
    return {name for name in exported if name.count(".") == 1 or name.rpartition(".")[2] not in top}


def test_the_reference_has_every_name_that_a_package_exports() -> None:
    assert not sorted(public() - {f"{PACKAGE}.__version__", *REFERENCE})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_name_in_the_text_of_a_page_is_found(page: Path) -> None:
    assert not missing(DOTTED.findall(page.read_text(encoding="utf-8")))


def test_a_wrong_name_is_missed() -> None:
    behind_a_function, absent = "whitebox_crate.capture.Trace", "whitebox_crate.hub.unheard_of"
    wrong = [behind_a_function, absent, "whitebox_crate.no.such_module", "whitebox_crate.inference.fold_for_inference"]
    assert missing(["whitebox_crate.capturing.Trace", *wrong]) == wrong
