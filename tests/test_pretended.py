"""The tests for GPUs where there is none: on a pretended device, each file in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils import backend_registration

FOLDER = Path(__file__).parent / "cuda"


def run(path: Path, device: str) -> str:
    """What pytest says of a file at the end, by that device."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(path)]
    environment = {**os.environ, "TEST_DEVICE": device, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=FOLDER.parents[1], env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    return done.stdout.splitlines()[-1]


@pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this PyTorch lets no device be written in Python",
)
@pytest.mark.parametrize("name", ["test_device", "test_readers", pytest.param("test_models", marks=pytest.mark.slow)])
def test_on_a_pretended_device(name: str) -> None:
    assert "passed" in run(FOLDER / f"{name}.py", "pretended")


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(FOLDER.glob("test_*.py")), ids=lambda path: path.stem)
def test_on_the_processor(path: Path) -> None:
    """The tests themselves: those that a pretended device cannot run are run at least here."""
    assert "passed" in run(path, "cpu")
