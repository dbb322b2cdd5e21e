"""Each section for a GPU runs, at tiny size on the processor, and writes what it finds."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu

PLACE = Path(gpu.__file__).with_suffix(".sh")
SCRIPT = PLACE.read_text()


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


@pytest.fixture
def setting() -> gpu.Setting:
    return gpu.Setting("cpu", "tiny", 1, time.monotonic() + 100)


@torch.no_grad()
def test_operations_are_those_of_the_form(setting: gpu.Setting) -> None:
    counts = {form: count for form, (_, count) in gpu.forms_of(setting, 16, torch.float32).items()}
    assert 0 < counts["folded"] < counts["default"]
    assert counts["compiled"] == counts["folded"]


def refusing(dtype: torch.dtype) -> Any:
    """In place of torch.randn: a device without memory for that type."""
    made = torch.randn

    def randn(*sizes: int, **options: Any) -> torch.Tensor:
        if options.get("dtype") == dtype:
            raise torch.OutOfMemoryError("no memory for images")
        return made(*sizes, **options)

    return randn


def test_what_cannot_be_made_is_noted(setting: gpu.Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "ROUNDS", 1)
    monkeypatch.setattr(gpu, "FORMS", ("folded",))
    monkeypatch.setattr(gpu.torch, "compile", lambda model: model)
    monkeypatch.setattr(gpu, "peak_rates", lambda setting: {"fp16": 1e12})  # the only type with a peak
    monkeypatch.setattr(gpu.torch, "randn", refusing(torch.bfloat16))
    _, *found = itertools.takewhile(lambda one: one.get("patch") != 8, gpu.forward(setting))
    by_precision = {one["precision"]: one for one in found}
    assert by_precision["bf16"]["error"] == "no memory for images"
    assert [name for name, one in by_precision.items() if "seconds" in one] == ["float32", "TF32", "fp16"]
    assert [name for name, one in by_precision.items() if "share_of_peak" in one] == ["fp16"]


def test_a_type_that_is_refused_has_no_rate(setting: gpu.Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    results = iter([{"seconds": 1.0}, {"error": "no TF32"}, {"seconds": 1.0}, {"seconds": 1.0}])
    monkeypatch.setattr(gpu, "timed", lambda *_: next(results))
    assert list(gpu.peak_rates(setting)) == ["float32", "bf16", "fp16"]


# In place of Python: the section BROKEN fails, UNFINISHED comes to no end, and all else is complete.
PYTHON = """#!/bin/bash
[ "$2" = benchmarks.gpu ] || exit 0
[ "$3" != "$BROKEN" ] || exit 3
[ "$3" = "$UNFINISHED" ] && complete=false || complete=true
printf '{"complete": %s}' $complete >"$5"
"""


@pytest.mark.parametrize(
    ("broken", "unfinished", "status", "said"),
    [
        ("", "", 0, ["all sections ran"]),
        ("growth", "training", 1, ["training is not complete: its seconds were too few", "growth ended with 3"]),
    ],
)
def test_the_script_names_what_failed(
    broken: str, unfinished: str, status: int, said: list[str], tmp_path: Path
) -> None:
    stub, out = tmp_path / "python", tmp_path / "out"
    stub.write_text(PYTHON)
    stub.chmod(0o755)
    out.mkdir()
    (out / "failed").write_text("of a run before\n")
    named = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "BROKEN": broken, "UNFINISHED": unfinished}
    done = subprocess.run(["bash", PLACE, out], env={**os.environ, **named}, capture_output=True, text=True)
    assert (done.returncode, done.stdout.splitlines()) == (status, said)
