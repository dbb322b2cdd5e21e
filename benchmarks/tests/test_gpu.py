"""Each section for a GPU runs, at tiny size on the processor, and writes what it finds."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from benchmarks import gpu

SCRIPT = Path(gpu.__file__).with_suffix(".sh").read_text()


def test_the_script_runs_every_section_in_eight_minutes() -> None:
    limits = {name: int(seconds) for name, seconds in re.findall(r"^measure (\w+) (\d+)$", SCRIPT, re.MULTILINE)}
    assert limits.keys() == gpu.SECTIONS.keys()
    [tests] = re.findall(r"^timeout (\d+) ", SCRIPT, re.MULTILINE)
    assert sum(limit + 30 for limit in limits.values()) + int(tests) <= 480


@pytest.mark.slow
@pytest.mark.parametrize("section", gpu.SECTIONS)
def test_a_section_writes_its_results(section: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("BATCHES", (1,)), ("ROUNDS", 1), ("WORKERS", (0, 1)), ("SIDES", (4,))):
        monkeypatch.setattr(gpu, name, value)
    monkeypatch.setattr(gpu.torch, "compile", lambda model: model)
    out = tmp_path / "found.json"
    words = [section, "--out", str(out), "--device", "cpu", "--size", "tiny", "--most", "1"]
    monkeypatch.setattr(sys, "argv", ["gpu", *words])
    gpu.main()
    found = json.loads(out.read_text())
    assert found["complete"] and len(found["results"]) >= 2
    assert not [one for one in found["results"] if "error" in one]
