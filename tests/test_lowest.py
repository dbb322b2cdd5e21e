"""The oldest versions that continuous integration installs are those that pyproject.toml claims."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def claimed(name: str) -> set[str]:
    """The requirements of `dependencies` or of an extra, as pins of their oldest versions."""
    found = re.search(rf"^{name} = \[(.*?)\]", PROJECT, re.DOTALL | re.MULTILINE)
    assert found is not None
    return {requirement.replace(">=", "==") for requirement in re.findall(r'"([^"]+)"', found[1])}


@pytest.mark.parametrize(
    ("pins", "extras"),
    [("lowest.txt", ("dependencies", "images", "plots", "eval")), ("lowest-train.txt", ("train",))],
)
def test_the_oldest_versions_are_those_that_are_claimed(pins: str, extras: tuple[str, ...]) -> None:
    wanted = set.union(*map(claimed, extras))
    # Builds of torch are as large as all else together: there the one of the README stands for them.
    assert set((ROOT / ".ci" / pins).read_text(encoding="utf-8").split()) == {
        pin for pin in wanted if not pin.startswith("torch==")
    }
