"""A run that was killed, or is called in parts, is the same run; a folder belongs to one run."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from small_training import (
    CLASSES,
    STEPS,
    Colours,
    Killed,
    content,
    make,
    optimizer_state,
    records,
    same,
    short,
    weights,
)

from whitebox_crate import create_model
from whitebox_crate.errors import OutputError, WeightsError
from whitebox_crate.models import ViT
from whitebox_crate.pretrained_cfg import PretrainedCfg
from whitebox_crate.training import Batch, last_metrics, train
from whitebox_crate.training.checkpoints import run_folder


@pytest.mark.parametrize("options", [{}, {"optimizer": "adamw"}, {"precision": "bf16"}], ids=str)
def test_a_run_in_parts_is_the_same_run(tmp_path: Path, options: dict[str, Any]) -> None:
    recipe = short(learning_rate=1e-2, sizes=(12, 18), size_starts=(0.0, 0.6), **options)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    expected = train(make(), Colours(), recipe, whole, checkpoint_every=2, log_every=1)

    train(make(), Colours(), recipe, parts, checkpoint_every=2, log_every=1, stop_at=5)
    assert content(parts) == ["checkpoint-0000004", "checkpoint-0000005", "metrics.jsonl"]
    source = Colours()
    model = make(seed=1)  # other weights, which the checkpoint replaces, and another state of torch's randomness
    assert not same(weights(model), weights(make()))
    returned = train(model, source, recipe, parts, checkpoint_every=2, log_every=1)
    assert returned is model
    assert [drawn["step"] for drawn in source.drawn] == [5, 6, 7, 8]
    assert same(weights(model), weights(expected))
    assert same(optimizer_state(parts), optimizer_state(whole))
    assert len(optimizer_state(whole)["state"]) == len(list(model.parameters()))
    assert records(parts) == records(whole)
    assert content(parts) == content(whole) == ["checkpoint-0000008", "checkpoint-0000009", "metrics.jsonl"]

    again = Colours()
    assert same(weights(train(make(seed=2), again, recipe, parts)), weights(expected))  # nothing is left to do
    assert again.drawn == []
    untouched = make(seed=3)
    train(untouched, again, recipe, tmp_path / "none", stop_at=0)
    assert again.drawn == [] and same(weights(untouched), weights(make(seed=3)))


def test_a_run_that_is_past_the_step_to_stop_at_stays_there(tmp_path: Path) -> None:
    there = train(make(), Colours(), short(), tmp_path, checkpoint_every=2, stop_at=4)
    source = Colours()
    again = train(make(seed=1), source, short(), tmp_path, checkpoint_every=2, stop_at=2)
    assert source.drawn == [] and same(weights(again), weights(there))


KILLED_AT = ("step", "saving", "renaming", "dropping")


def _die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def run_and_die(folder: Path, at: str) -> None:
    """A run that ends at step 6 (the seventh) or while it writes the checkpoint of step 4; in a process of its own."""
    write_text, rename = Path.write_text, Path.rename
    if at == "saving":
        Path.write_text = lambda path, *a, **k: (
            _die() if "0000002" in str(content(folder)) else write_text(path, *a, **k)
        )  # type: ignore
    if at == "renaming":
        Path.rename = lambda path, to: _die() if to.name == "checkpoint-0000004" else rename(path, to)  # type: ignore
    if at == "dropping":
        sys.modules["shutil"].rmtree = lambda path, *a, **k: _die() if "checkpoint-" in str(path) else None  # type: ignore
    train(make(), Killed(6), short(learning_rate=1e-2), folder, checkpoint_every=2, log_every=1)


def run_and_die_in_every_way(folder: Path) -> None:
    """Forks once for each way, so that the slow imports are paid once."""
    torch.set_num_threads(1)
    for at in KILLED_AT:
        if (child := os.fork()) == 0:
            run_and_die(folder / at, at)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def test_a_killed_run_is_the_same_run(tmp_path: Path) -> None:
    code = f"import test_resume, pathlib; test_resume.run_and_die_in_every_way(pathlib.Path({str(tmp_path)!r}))"
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, check=True, timeout=600)
    assert content(tmp_path / "step") == ["checkpoint-0000004", "checkpoint-0000006", "metrics.jsonl"]
    for at in ("saving", "renaming"):
        assert content(tmp_path / at) == ["checkpoint-0000002", "checkpoint.partial", "metrics.jsonl"]
    assert content(tmp_path / "dropping") == [*(f"checkpoint-000000{step}" for step in (2, 4, 6)), "metrics.jsonl"]

    recipe = short(learning_rate=1e-2)
    expected = train(make(), Colours(), recipe, tmp_path / "whole", checkpoint_every=2, log_every=1)
    for at, begun in zip(KILLED_AT, (6, 2, 2, 6), strict=True):
        source = Colours()
        model = train(make(seed=1), source, recipe, tmp_path / at, checkpoint_every=2, log_every=1)
        assert source.drawn[0]["step"] == begun
        assert same(weights(model), weights(expected))
        assert same(optimizer_state(tmp_path / at), optimizer_state(tmp_path / "whole"))
        assert content(tmp_path / at) == ["checkpoint-0000008", "checkpoint-0000009", "metrics.jsonl"]
        assert records(tmp_path / at)[-1] == records(tmp_path / "whole")[-1]


def test_a_half_written_checkpoint_is_no_checkpoint(tmp_path: Path) -> None:
    partial = tmp_path / "checkpoint.partial"
    partial.mkdir()
    (partial / "model.safetensors").write_bytes(b"half")
    source = Colours()
    train(make(), source, short(), tmp_path)
    assert source.drawn[0]["step"] == 0
    assert content(tmp_path) == ["checkpoint-0000009", "metrics.jsonl"]


# What it refuses


@pytest.mark.parametrize("changed", [{"learning_rate": 1e-3}, {"steps": 10}, {"seed": 1}, {"sizes": (18,)}], ids=str)
def test_a_folder_belongs_to_one_recipe(tmp_path: Path, changed: dict[str, Any]) -> None:
    train(make(), Colours(), short(), tmp_path, checkpoint_every=2, stop_at=2)
    model, source = make(seed=1), Colours()
    with pytest.raises(WeightsError, match=rf"another recipe, .*\({next(iter(changed))} was .* is .*another folder"):
        train(model, source, short(**changed), tmp_path)
    assert source.drawn == [] and same(weights(model), weights(make(seed=1)))
    assert content(tmp_path) == ["checkpoint-0000002"]


@pytest.mark.parametrize(
    "other", [{"num_classes": CLASSES + 1}, {"embed_dim": 32}, {"depth": 3}, {"kind": ViT}], ids=str
)
def test_a_folder_belongs_to_one_model(tmp_path: Path, other: dict[str, Any]) -> None:
    train(make(), Colours(), short(), tmp_path, checkpoint_every=2, stop_at=2)
    with pytest.raises(WeightsError, match=r"another (recipe, )?model.*another folder"):
        train(make(**other), Colours(), short(), tmp_path)


def test_a_folder_belongs_to_data_of_the_same_classes(tmp_path: Path) -> None:
    for names in (("a", "b", "c"), ("a", "b", "d")):
        model = make()
        model.pretrained_cfg = PretrainedCfg(label_names=names)
        if names[-1] == "d":
            with pytest.raises(WeightsError, match=r"data.*label_names was .*'c'.* is .*'d'.*another folder"):
                train(model, Colours(), short(), tmp_path)
        else:
            train(model, Colours(), short(), tmp_path, checkpoint_every=2, stop_at=2)


def test_a_run_of_another_model_is_not_gone_on_with(tmp_path: Path) -> None:
    def model(skip: str) -> Any:
        return create_model("crate_nano", img_size=12, depth=1, num_classes=3, skip=skip)

    recipe = short(sizes=(12,), size_starts=(0.0,))
    train(model("input"), Colours(), recipe, tmp_path, checkpoint_every=2, stop_at=2)
    with pytest.raises(WeightsError, match="normalized"):  # its tensors have the same shapes
        train(model("normalized"), Colours(), recipe, tmp_path)


def damage_file(path: Path, damage: str) -> None:
    data = path.read_bytes()
    if damage == "gone":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "a bit":  # which leaves tensors that load
        path.write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    else:
        path.write_text(damage)


DAMAGES = [
    ("model.safetensors", "a bit"),
    ("optimizer.bin", "cut"),
    ("random_states_0.pkl", "gone"),  # accelerate goes on without
    ("run.json", "gone"),
    ("run.json", "[1]"),
    ("run.json", '{"step": 6, "run": [], "files": 3}'),
    ("run.json", '{"step": "6", "run": {}}'),
    ("run.json", '{"step": 1e99, "run": {"trains": []}, "files": {}}'),
    ("run.json", '{"step": 6, "run": {"trains": []}, "files": {}}'),
]


def test_of_a_damaged_checkpoint_the_one_before_it_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options: dict[str, Any] = {"checkpoint_every": 2, "log_every": 1}
    expected = train(make(), Colours(), short(), tmp_path / "whole", **options)
    train(make(), Colours(), short(), tmp_path / "begun", stop_at=6, **options)
    for number, (file, damage) in enumerate(DAMAGES):
        folder = tmp_path / str(number)
        shutil.copytree(tmp_path / "begun", folder)
        damage_file(folder / "checkpoint-0000006" / file, damage)
        source = Colours()
        model = train(make(seed=1), source, short(), folder, **options)
        assert source.drawn[0]["step"] == 4, (file, damage)
        assert same(weights(model), weights(expected)), (file, damage)
        assert records(folder) == records(tmp_path / "whole")
        kept = ["checkpoint-0000006.damaged", "checkpoint-0000008", "checkpoint-0000009", "metrics.jsonl"]
        assert content(folder) == kept
        said = capsys.readouterr().err
        assert "checkpoint-0000006 is broken" in said and "It was renamed to checkpoint-0000006.damaged" in said
        assert "resuming from" in said and file in said


def test_what_lies_beside_checkpoints_is_left_alone(tmp_path: Path) -> None:
    train(make(), Colours(), short(), tmp_path, checkpoint_every=2, log_every=1, stop_at=4)
    junk = ["checkpoint-0000056.bak", "checkpoint-0000056 (copy)", "checkpoint-6-old", "checkpoint-", "checkpoint-٩"]
    for name in junk:
        shutil.copytree(tmp_path / "checkpoint-0000004", tmp_path / name)
    (tmp_path / "checkpoint-0000099").write_text("a file")
    source = Colours()
    train(make(), source, short(), tmp_path, checkpoint_every=2, log_every=1)
    assert source.drawn[0]["step"] == 4
    assert {*junk, "checkpoint-0000099"} < set(content(tmp_path))


GARBAGE = [
    b"}",
    b"{}",
    b"[3]",
    b'"step"',
    b'{"step": "3"}',
    b'{"step": 2, "skipped": "x"}',
    b"\xff\x00}",
    b"[" * 9999 + b"}",
]


def test_garbage_among_the_metrics_is_no_record(tmp_path: Path) -> None:
    expected = tmp_path / "whole"
    train(make(), Colours(), short(), expected, log_every=1)
    train(make(), Colours(), short(), tmp_path / "run", log_every=1, checkpoint_every=2, stop_at=4)
    path = tmp_path / "run" / "metrics.jsonl"
    path.write_bytes(b"\n".join([*GARBAGE, *path.read_bytes().splitlines(), *GARBAGE]))
    assert last_metrics(tmp_path / "run")["training_loss"] == records(expected)[3]["loss"]
    train(make(), Colours(), short(), tmp_path / "run", log_every=1)
    assert records(tmp_path / "run") == records(expected)


class Intruder(Colours):
    """Another run begins in the same folder, with another recipe, while this one draws its fourth batch."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder, self.other = folder, Colours()

    def draw(self, batch_size: int, *, step: int, **options: Any) -> Batch:  # type: ignore[override]
        if step == 3:
            with pytest.raises(OutputError, match=r"another run is writing to .*wait for it, or choose another folder"):
                train(make(), self.other, short(), self.folder)
        return super().draw(batch_size, step=step, **options)


@pytest.mark.skipif(sys.platform == "win32", reason="no locks")
def test_a_folder_is_of_one_run_at_a_time(tmp_path: Path) -> None:
    source = Intruder(tmp_path / "one")
    train(make(), source, short(), tmp_path / "one", checkpoint_every=2)
    assert len(source.drawn) == STEPS and not source.other.drawn
    assert content(tmp_path / "one") == ["checkpoint-0000008", "checkpoint-0000009", "metrics.jsonl"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_worker_does_not_keep_the_folder_of_a_run_that_ended(tmp_path: Path) -> None:
    begun, end = os.pipe(), os.pipe()
    with run_folder(tmp_path):
        if not (child := os.fork()):
            os.write(begun[1], b".")
            os.read(end[0], 1)
            os._exit(0)
        os.read(begun[0], 1)
    with run_folder(tmp_path):
        os.write(end[1], b".")
    os.waitpid(child, 0)


def test_advice_to_run_what_is_in_a_checkpoint_reaches_nobody(tmp_path: Path) -> None:
    train(make(), Colours(), short(), tmp_path, checkpoint_every=2, stop_at=2)
    checkpoint = tmp_path / "checkpoint-0000002"
    torch.save({"state": tmp_path}, checkpoint / "optimizer.bin")
    about = json.loads((checkpoint / "run.json").read_text())
    (checkpoint / "run.json").write_text(json.dumps({**about, "files": {}}))  # as older versions wrote it
    with pytest.raises(WeightsError, match="objects that training does not write") as caught:
        train(make(), Colours(), short(), tmp_path)
    assert "weights_only" not in str(caught.value) and "trust" not in str(caught.value)


@pytest.mark.parametrize("damage", ["cut", "gone"])
@pytest.mark.parametrize("file", ["run.json", "model.safetensors", "optimizer.bin"])
def test_a_broken_checkpoint_is_named(tmp_path: Path, file: str, damage: str) -> None:
    train(make(), Colours(), short(), tmp_path, checkpoint_every=2, stop_at=2)
    damage_file(tmp_path / "checkpoint-0000002" / file, damage)
    with pytest.raises(WeightsError, match="checkpoint-0000002 is broken"):
        train(make(), Colours(), short(), tmp_path)


def test_metrics_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").mkdir()
    source = Colours()
    with pytest.raises(OutputError, match=r"metrics.jsonl.*move it away, or choose another folder"):
        train(make(), source, short(), tmp_path)
    assert source.drawn == []
