"""The examples of the reference run, and every entry point has one."""

from __future__ import annotations

import doctest
import importlib
import inspect
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from test_names import REFERENCE, ROOT

import whitebox_crate

SAMPLES = Path(whitebox_crate.__file__).parent / "samples"


def named(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def entry_points() -> list[str]:
    """The functions of the package itself, and what the first page of the reference says to begin with."""
    first = (ROOT / "docs" / "reference" / "index.md").read_text(encoding="utf-8")
    rows = [row.split("|") for row in re.findall(r"^\| \[.*$", first, re.MULTILINE)]
    begin = {name for row in rows for name in re.findall(r"`(\w+)`", row[3])}
    found = [name for name in REFERENCE if name.rpartition(".")[2] in begin]
    assert {name.rpartition(".")[2] for name in found} == begin
    functions = [name for name in REFERENCE if name.count(".") == 1 and inspect.isfunction(named(name))]
    return list(dict.fromkeys([*functions, *found]))


EXAMPLES = [name for name in REFERENCE if ">>> " in (named(name).__doc__ or "")]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the examples name."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(SAMPLES / "coffee.jpg", "photo.jpg")
    for folder in ("data/images", "data/masks", "pictures/cup", "pictures/rocket"):
        Path(folder).mkdir(parents=True)
    shutil.copy("photo.jpg", "data/images/photo.jpg")
    Image.new("L", (420, 280), 1).save("data/masks/photo.png")
    for number in range(8):
        kind = ("cup", "rocket")[number % 2]
        Image.new("RGB", (32, 32), (number, 0, 0)).save(f"pictures/{kind}/{number}.png")
    return tmp_path


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_does_what_it_says(name: str, here: Path) -> None:
    torch.manual_seed(0)
    package = importlib.import_module(name.rpartition(".")[0])
    names = {each: getattr(module, each) for module in (whitebox_crate, package) for each in dir(module)}
    text = named(name).__doc__
    test = doctest.DocTestParser().get_doctest(text, {"torch": torch, **names}, name, None, None)
    printed: list[str] = []
    doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test, out=printed.append)
    assert not printed, "".join(printed)


@pytest.mark.parametrize("name", entry_points())
def test_an_entry_point_has_an_example(name: str) -> None:
    assert name in EXAMPLES
