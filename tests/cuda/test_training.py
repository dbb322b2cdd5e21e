"""Training on a device: a run that is resumed ends where one without a stop ends; in lower precision; by FSDP."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from small_models import small_model
from small_training import Colours

from whitebox_crate.training import Recipe, train

pytestmark = [pytest.mark.cuda, pytest.mark.real]

RECIPE = {
    "steps": 6,
    "batch_size": 8,
    "learning_rate": 1e-3,
    "optimizer": "adamw",
    "sizes": (12,),
    "size_starts": (0.0,),
}


@pytest.fixture(autouse=True)
def new_accelerator() -> Iterator[None]:
    """Accelerate keeps one precision for a process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def trained(folder: Path, stop_at: int | None = None, **numbers: object) -> torch.nn.Module:
    model = small_model("crate_nano_patch6_96", num_classes=3, img_size=12)
    train(model, Colours(), Recipe(**{**RECIPE, **numbers}), folder, stop_at=stop_at, checkpoint_every=2)
    return model


def test_a_resumed_run_ends_where_the_whole_one_ends(device: torch.device, tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole")
    trained(tmp_path / "parts", stop_at=3)
    parts = trained(tmp_path / "parts")
    assert next(whole.parameters()).device.type == device.type
    for key, value in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[key], value, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision(precision: str, device: torch.device, tmp_path: Path) -> None:
    if device.type == "cpu" and precision == "fp16":
        pytest.skip("fp16 is left to GPUs")
    model = trained(tmp_path, precision=precision)
    assert all(value.dtype == torch.float32 and value.isfinite().all() for value in model.parameters())


def test_one_device_of_fsdp(device: torch.device, tmp_path: Path) -> None:
    if device.type == "cpu":
        pytest.skip("tests/training has FSDP on the processor")
    script = tmp_path / "run.py"
    script.write_text(
        "from pathlib import Path\n"
        "from small_models import small_model\n"
        "from small_training import Colours\n"
        "from whitebox_crate.training import Recipe, train\n"
        "model = small_model('crate_nano_patch6_96', num_classes=3, img_size=12)\n"
        f"train(model, Colours(), Recipe(**{RECIPE!r}), Path({str(tmp_path / 'out')!r}))\n"
    )
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--use_fsdp", "--fsdp_version", "2"]
    launch += ["--fsdp_auto_wrap_policy", "NO_WRAP", "--num_processes", "1", "--num_machines", "1"]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    tests = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [*launch, str(script)], env={**os.environ, "PYTHONPATH": tests}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "out" / "metrics.jsonl").stat().st_size
