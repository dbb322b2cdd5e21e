"""What training refuses, and what it says of it: at once where it can, and before anything is spoilt."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from small_training import (
    CLASSES,
    Colours,
    Looks,
    Spoilt,
    content,
    make,
    records,
    short,
)

from whitebox_crate.errors import InputError, MissingExtraError, OutputError, UnknownNameError
from whitebox_crate.training import Batch, train
from whitebox_crate.training.loop import make_optimizer


def test_a_loss_that_is_no_number_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the loss became nan by step 4; lower the learning rate"):
        train(make(), Spoilt(), short(), tmp_path, checkpoint_every=2, log_every=50)
    assert content(tmp_path) == ["checkpoint-0000002"]  # what it spoilt is not kept in place of what was good
    with pytest.raises(InputError, match="nan by step 4"):
        train(make(), Spoilt(), short(), tmp_path / "log", log_every=1)
    assert [record["step"] for record in records(tmp_path / "log")] == [1, 2, 3]


@pytest.mark.parametrize("missing", ["accelerate", "lion_pytorch"])
def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(MissingExtraError, match=rf"{missing} is needed.*pip install 'whitebox-crate\[train\]'"):
        train(make(), Colours(), short(), tmp_path / "out")
    assert content(tmp_path) == []
    if missing == "lion_pytorch":
        assert isinstance(make_optimizer(make(), short(optimizer="adamw")), torch.optim.AdamW)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        source = Colours()
        with pytest.raises(OutputError, match=r"cannot make the folder .*give another folder"):
            train(make(), source, short(), out)
        assert source.drawn == []
    assert content(tmp_path) == ["file"] and (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("options", "sizes", "message"),
    [
        ({"dynamic_img_size": False}, (12, 18), "dynamic_img_size=True"),
        ({}, (12, 20), "not divisible by patches of 6 x 6"),
        ({"in_chans": 3, "img_size": 24, "dynamic_img_size": False}, (12, 12), "expected images of 24 x 24"),
    ],
)
def test_sizes_that_the_model_cannot_take_are_refused_at_once(
    tmp_path: Path, options: dict[str, Any], sizes: tuple[int, ...], message: str
) -> None:
    source = Colours()
    with pytest.raises(InputError, match=message):
        train(make(**options), source, short(sizes=sizes, size_starts=(0.0, 0.9)), tmp_path / "out")
    assert source.drawn == [] and content(tmp_path) == []


def test_a_second_precision_in_one_process_is_refused(tmp_path: Path) -> None:
    train(make(), Colours(), short(), tmp_path / "first", stop_at=1)
    with pytest.raises(InputError, match=r"does not support precision 'bf16' here: .*already been initialized"):
        train(make(), Colours(), short(precision="bf16"), tmp_path / "second")
    assert content(tmp_path) == ["first"]


@pytest.mark.parametrize("wrong", [-1, CLASSES])
def test_a_label_that_is_no_class_is_refused(tmp_path: Path, wrong: int) -> None:
    class Mislabelled(Colours):
        def draw(self, *args: Any, **options: Any) -> Batch:
            batch = super().draw(*args, **options)
            batch.labels[1] = wrong
            return batch

    with pytest.raises(InputError, match=rf"labels go from .*{wrong}.*, but the model has 3 classes; make it with"):
        train(make(), Mislabelled(), short(), tmp_path)


def test_arguments_that_mean_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", list)  # none is installed
    with pytest.raises(InputError, match="a batch of 4 images cannot be divided among 1 processes x 3 parts"):
        train(make(), Colours(), short(accumulation=3), tmp_path / "out")
    with pytest.raises(InputError, match="workers must be at least 0, not -1"):
        train(make(), Colours(), short(), tmp_path / "out", workers=-1)
    with pytest.raises(InputError, match=r"with trackers \['nobody'\] here"):
        train(make(), Colours(), short(), tmp_path / "out", trackers=["nobody"])
    with pytest.raises(MissingExtraError, match=r"trackers not installed: \['tensorboard'\]"):
        train(make(), Colours(), short(), tmp_path / "out", trackers=["tensorboard"])
    for every in ({"checkpoint_every": 0}, {"log_every": -1}, {"validation": Looks(0, [])}):
        with pytest.raises(InputError, match="at least 1"):
            train(make(), Colours(), short(), tmp_path / "out", **every)
    with pytest.raises(UnknownNameError, match="did you mean 'adamw'"):
        train(make(), Colours(), short(optimizer="adam"), tmp_path / "out")
    assert content(tmp_path) == []
