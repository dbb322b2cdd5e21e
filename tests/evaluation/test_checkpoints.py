"""Checkpoints in a folder: what gives no order, and what is damaged."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from safetensors.torch import save_file

from whitebox_crate import InputError, WeightsError, create_model
from whitebox_crate.evaluation import find_checkpoints, load_checkpoint


def test_names_of_checkpoints_that_give_no_order_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a1.pth").touch()
    (tmp_path / "b01.pth").touch()
    with pytest.raises(InputError, match="have the same number"):
        find_checkpoints(tmp_path)
    (tmp_path / "b01.pth").rename(tmp_path / "last.pth")
    with pytest.raises(InputError, match="no number"):
        find_checkpoints(tmp_path)


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-1"
    folder.mkdir()
    save_file(
        create_model("crate_nano", depth=2, num_classes=3, img_size=36).state_dict(), folder / "model.safetensors"
    )
    (folder / "run.json").write_text("{}")
    with pytest.raises(WeightsError, match=r"run\.json"):
        load_checkpoint(folder)
    shutil.rmtree(folder)
    (tmp_path / "1.pth").write_bytes(b"none")
    with pytest.raises(WeightsError, match=r"1\.pth"):
        load_checkpoint(tmp_path / "1.pth")


def test_what_a_training_leaves_beside_its_checkpoints_is_no_point_of_a_curve(tmp_path: Path) -> None:
    for name in ("checkpoint-0000004", "checkpoint-0000006.damaged", "checkpoint.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").touch()
    (tmp_path / "best.safetensors").touch()
    assert find_checkpoints(tmp_path) == [(4, tmp_path / "checkpoint-0000004")]
