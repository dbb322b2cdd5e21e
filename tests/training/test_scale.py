"""A run is the same run on one process or several, killed or not, and keeps its last good checkpoint when it fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from small_models import FAMILIES
from torch import Tensor
from training_in_parts import RECIPE, Squares, make

from whitebox_crate.errors import InputError
from whitebox_crate.training import last_metrics, train

HELPER = Path(__file__).parents[1] / "training_in_parts.py"


@pytest.fixture
def run(tmp_path: Path) -> Callable[[str], None]:
    """Does a task of the helper, all of whose runs end up below `tmp_path`."""

    def do(task: str) -> None:
        settings = {"OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path / "hub"), "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, str(HELPER), task, str(tmp_path)]
        done = subprocess.run(command, env={**os.environ, **settings}, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr[-5000:]

    return do


@pytest.fixture(autouse=True)
def fresh_accelerate() -> Iterator[None]:
    """accelerate keeps the precision of the first Accelerator for the whole process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def weights(folder: Path, rank: int = 0) -> dict[str, Tensor]:
    found: dict[str, Tensor] = torch.load(folder / f"weights-{rank}.pt", weights_only=True)
    return found


def gradients(folder: Path) -> dict[str, Tensor]:
    """The running means of the gradients in the last checkpoint."""
    checkpoint = max(folder.glob("checkpoint-0*"))
    state = torch.load(checkpoint / "optimizer.bin", weights_only=True)["state"]
    return {str(index): of_weight["exp_avg"] for index, of_weight in state.items()}


def differ(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    """The largest difference of two weights; 0 means to the bit."""
    assert first.keys() == second.keys()
    assert all(value.isfinite().all() for value in first.values())
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def started() -> dict[str, Tensor]:
    return dict(make().state_dict())


def test_one_two_and_four_processes_reach_the_same_weights(run: Callable[[str], None], tmp_path: Path) -> None:
    run("share_a_batch")
    for kind in ("adamw", "lion"):
        alone = weights(tmp_path / f"{kind}-1")
        assert differ(alone, started()) > 5e-3
        for processes in (2, 4):
            shared = [weights(tmp_path / f"{kind}-{processes}", rank) for rank in range(processes)]
            assert differ(alone, shared[0]) < 1e-5
            assert all(differ(shared[0], other) == 0 for other in shared[1:])
            # Neither optimiser minds if all gradients are so many times as large; their means do.
            assert differ(gradients(tmp_path / f"{kind}-1"), gradients(tmp_path / f"{kind}-{processes}")) < 1e-5


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_with_the_same_weights(run: Callable[[str], None], tmp_path: Path) -> None:
    run("kill")
    kinds = ("drawn", "streamed", "by workers", "streamed in two")
    ends = {kind: weights(tmp_path / kind / "whole") for kind in kinds}
    for kind in kinds:
        assert differ(ends[kind], weights(tmp_path / kind / "killed")) == 0, kind
        lines = (tmp_path / kind / "killed" / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == list(range(1, RECIPE.steps + 1))
    assert differ(ends["drawn"], ends["streamed"]) > 0.01  # another order, and so other weights


def test_what_ends_a_run_leaves_its_last_good_checkpoint(run: Callable[[str], None], tmp_path: Path) -> None:
    run("fail")
    whole = weights(tmp_path / "whole")
    for name, what in {"optimizer": "a checkpoint", "weights": "a checkpoint", "line": "to"}.items():
        told = (tmp_path / name / "error-0.txt").read_text()
        assert told.startswith(f"OutputError: cannot write {what}") and told.endswith("free some space and call again")
        assert differ(whole, weights(tmp_path / name)) == 0  # there was room again, and it went on
    for name, rank, step in (("loss", 0, 4), ("loss", 1, 4), ("gradient", 0, 4)):
        assert (tmp_path / name / f"error-{rank}.txt").read_text().startswith("InputError: ")
        left = max((tmp_path / name).glob("checkpoint-0*"))
        assert left.name == f"checkpoint-{step:07d}"
        assert all(value.isfinite().all() for value in load_file(left / "model.safetensors").values())


@pytest.mark.slow
def test_sharded_weights_are_those_of_copies(run: Callable[[str], None], tmp_path: Path) -> None:
    run("shard")
    whole, sharded = (weights(tmp_path / name) for name in ("whole", "sharded"))
    assert differ(whole, sharded) < 1e-5
    assert differ(sharded, weights(tmp_path / "sharded", 1)) == 0  # each process has all of them in the end
    assert differ(sharded, weights(tmp_path / "in turns")) == 0


@pytest.mark.slow
def test_every_family_is_trained_by_copies_and_by_shards(run: Callable[[str], None], tmp_path: Path) -> None:
    run("families")
    runs = [*(f"{family} supervised" for family in FAMILIES), "mae mae"]
    assert sorted(path.name for path in (tmp_path / "alone").iterdir()) == sorted(runs)
    for name in runs:
        alone, looked = weights(tmp_path / "alone" / name), metrics(tmp_path / "alone" / name)
        if name == "tost supervised":
            # Softmax does not see a bias of the keys: its gradient is rounding, of which AdamW makes a step.
            assert differ(gradients(tmp_path / "alone" / name), gradients(tmp_path / "copies" / name)) < 1e-6
            alone = weights(tmp_path / "copies" / name)
        for kind in ("copies", "shards"):
            assert differ(alone, weights(tmp_path / kind / name)) < 1e-5, (kind, name)
            assert differ(alone, weights(tmp_path / kind / name, 1)) < 1e-5, (kind, name)
            assert metrics(tmp_path / kind / name) == pytest.approx(looked, abs=1e-4), (kind, name)


def metrics(folder: Path) -> dict[str, float]:
    """What validation found of the images with masks."""
    found = last_metrics(folder)
    return {"mask_iou": found["mask_iou"]}


def trained(folder: Path, **options: str | bool) -> dict[str, Tensor]:
    AcceleratorState._reset_state(reset_partial_state=True)
    recipe = replace(RECIPE, steps=4, optimizer="adamw", **options)
    return dict(train(make(), Squares(), recipe, folder).state_dict())


def test_checkpointed_gradients_are_the_gradients(tmp_path: Path) -> None:
    plain, checkpointed = trained(tmp_path / "plain"), trained(tmp_path / "less memory", checkpointing=True)
    assert differ(plain, checkpointed) == 0


def test_bf16_moves_weights_nearly_as_float32_does(tmp_path: Path) -> None:
    plain, half = trained(tmp_path / "float32"), trained(tmp_path / "bf16", precision="bf16")
    moved = [torch.cat([(end[name] - value).flatten() for name, value in started().items()]) for end in (plain, half)]
    assert 0 < float((moved[0] - moved[1]).norm() / moved[0].norm()) < 0.2


@pytest.mark.skipif(torch.accelerator.is_available(), reason="a GPU takes it")
def test_fp16_is_refused_where_it_would_mean_float32(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="fp16 only on GPUs"):
        trained(tmp_path, precision="fp16")
