"""The loop learns, follows the recipe, and a killed run ends as one that was left alone."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from whitebox_crate import create_model
from whitebox_crate.errors import InputError, MissingExtraError, OutputError, UnknownNameError, WeightsError
from whitebox_crate.models import Crate, CrateMae, ImageTransformer, ViT
from whitebox_crate.pretrained_cfg import PretrainedCfg
from whitebox_crate.training import Batch, Recipe, normalize, train
from whitebox_crate.training.loop import make_optimizer

STEPS, CLASSES = 9, 3


class Colours:
    """Which channel is bright? Noise of a strength that grows with difficulty goes over it."""

    def __init__(self) -> None:
        self.drawn: list[dict[str, Any]] = []

    def draw(self, batch_size: int, *, seed: int, step: int, difficulty: float = 1.0, size: int | None = None) -> Batch:
        self.drawn.append({"seed": seed, "step": step, "difficulty": difficulty, "size": size})
        assert size is not None
        generator = torch.Generator().manual_seed(1000 * seed + step)
        labels = torch.randint(CLASSES, (batch_size,), generator=generator)
        images = torch.rand(batch_size, 3, size, size, generator=generator) * 0.4 * difficulty
        images[torch.arange(batch_size), labels] += 0.5
        return Batch(images, labels, torch.ones(batch_size, size, size, dtype=torch.bool))


class Killed(Colours):
    """Dies for good when this step is drawn."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def draw(self, batch_size: int, *, step: int, **options: Any) -> Batch:  # type: ignore[override]
        if step == self.at:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().draw(batch_size, step=step, **options)


class Spoilt(Colours):
    """Not-a-number in the images from this step on."""

    def draw(self, batch_size: int, *, step: int, **options: Any) -> Batch:  # type: ignore[override]
        batch = super().draw(batch_size, step=step, **options)
        return Batch(batch.images * math.nan, batch.labels, batch.masks) if step >= 3 else batch


def make(kind: Callable[..., ImageTransformer] = Crate, seed: int = 0, **options: Any) -> ImageTransformer:
    torch.manual_seed(seed)
    small = {"img_size": 12, "patch_size": 6, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": CLASSES}
    return kind(**{**small, "dynamic_img_size": True, **options})


def short(**options: Any) -> Recipe:
    """A recipe of a few steps; its numbers are given in full, so that the package's defaults may change."""
    numbers = {"steps": STEPS, "batch_size": 4, "optimizer": "lion", "learning_rate": 4e-4, "weight_decay": 0.05}
    shape = {"warmup": 0.05, "curriculum": 0.45, "sizes": (12,), "size_starts": (0.0,)}
    return Recipe(**{**numbers, **shape, "label_smoothing": 0.1, "clip_norm": 1.0, "seed": 0, **options})


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def same(first: Any, second: Any) -> bool:
    """Equal to the bit, through dicts and lists."""
    if isinstance(first, Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(same(a, b) for a, b in zip(first, second, strict=True))
    return bool(first == second)


def content(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def optimizer_state(folder: Path) -> Any:
    return torch.load(next(folder.glob("checkpoint-*")) / "optimizer.bin", weights_only=True)


def records(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds_per_step"} for line in lines]


@pytest.fixture(autouse=True)
def fresh_accelerate() -> Iterator[None]:
    """accelerate keeps the precision of the first Accelerator for the whole process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


# What it does


@pytest.mark.parametrize(("optimizer", "learning_rate"), [("lion", 3e-3), ("adamw", 1e-2)])
def test_it_learns(tmp_path: Path, optimizer: Any, learning_rate: float) -> None:
    recipe = short(steps=60, batch_size=16, optimizer=optimizer, learning_rate=learning_rate)
    model = train(make(), Colours(), recipe, tmp_path, log_every=5)
    first, last = records(tmp_path)[0], records(tmp_path)[-1]
    assert first["accuracy"] < 0.9 and last["accuracy"] == 1
    batch = Colours().draw(64, seed=99, step=0, size=12)  # never seen
    assert (model.eval()(normalize(batch.images, model)).argmax(-1) == batch.labels).float().mean() > 0.95


def test_it_is_the_loop_of_the_paper_written_out(tmp_path: Path) -> None:
    recipe = short(optimizer="adamw", label_smoothing=0.2, clip_norm=0.05, weight_decay=0.3, learning_rate=0.02, seed=5)
    trained = train(make(), Colours(), recipe, tmp_path)

    model, source = make(), Colours()
    no_decay = {"cls_token", "pos_embed"}
    matrices = [p for name, p in model.named_parameters() if p.ndim > 1 and name not in no_decay]
    others = [p for name, p in model.named_parameters() if not (p.ndim > 1 and name not in no_decay)]
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.3}, {"params": others, "weight_decay": 0.0}])
    for step in range(STEPS):
        batch = source.draw(4, seed=5, step=step, difficulty=min(1, step / (0.45 * STEPS)), size=12)
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        images = (batch.images - mean.view(3, 1, 1)) / std.view(3, 1, 1)
        log_p = model(images).log_softmax(-1)
        target = 0.8 * nn.functional.one_hot(batch.labels, CLASSES) + 0.2 / CLASSES
        optimizer.zero_grad()
        (-(target * log_p).sum(-1).mean()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.05)
        for group in optimizer.param_groups:
            done = (step + 1) / STEPS  # the warm-up is the first step
            group["lr"] = 0.02 * (1 if step == 0 else 0.5 + 0.5 * math.cos(math.pi * (done - 1 / 9) / (8 / 9)))
        optimizer.step()
    for name, value in weights(model).items():
        torch.testing.assert_close(weights(trained)[name], value, rtol=1e-4, atol=1e-6)


def test_every_step_follows_the_schedules(tmp_path: Path) -> None:
    recipe = short(sizes=(12, 24, 18), size_starts=(0.0, 0.4, 0.7), clip_norm=0.01, seed=7, warmup=0.4)
    source, steps = Colours(), []

    def watch(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"]]
        norm = torch.linalg.vector_norm(torch.stack([g.norm() for g in gradients if g is not None]))
        steps.append(({group["lr"] for group in optimizer.param_groups}, float(norm)))

    handle = register_optimizer_step_pre_hook(watch)
    try:
        train(make(), source, recipe, tmp_path)
    finally:
        handle.remove()
    assert [drawn["step"] for drawn in source.drawn] == list(range(STEPS))
    assert {drawn["seed"] for drawn in source.drawn} == {7}
    assert [drawn["size"] for drawn in source.drawn] == 4 * [12] + 3 * [24] + 2 * [18]
    for step, (drawn, (rates, norm)) in enumerate(zip(source.drawn, steps, strict=True)):
        assert drawn["difficulty"] == recipe.difficulty_at(step)
        assert rates == {recipe.learning_rate_at(step)}
        assert 0 < norm <= 0.01 * (1 + 1e-4)
    assert source.drawn[0]["difficulty"] == 0 and source.drawn[-1]["difficulty"] == 1


def test_the_log_and_the_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = short(sizes=(12, 18), size_starts=(0.0, 0.5))
    out = tmp_path / "new" / "folder"
    train(make(), Colours(), recipe, out, checkpoint_every=4, log_every=2)
    assert content(out) == ["checkpoint-0000009", "metrics.jsonl"]
    lines = records(out)
    assert [line["step"] for line in lines] == [2, 4, 6, 8, 9]  # the last is of one step alone
    for line in lines:
        assert set(line) == {"step", "loss", "accuracy", "difficulty", "size", "learning_rate"}
        assert line["loss"] > 0 and 0 <= line["accuracy"] <= 1
        assert line["difficulty"] == pytest.approx(recipe.difficulty_at(line["step"] - 1), abs=1e-4)
        assert line["learning_rate"] == recipe.learning_rate_at(line["step"] - 1)
        assert line["size"] == recipe.size_at(line["step"] - 1)
    shown = capsys.readouterr()
    assert "step 9/9  loss" in shown.err and "0 min left" in shown.err and shown.out == ""

    each = tmp_path / "each"
    train(make(), Colours(), recipe, each, log_every=1)
    losses = [line["loss"] for line in records(each)]
    for line in lines[:4]:
        assert line["loss"] == pytest.approx((losses[line["step"] - 2] + losses[line["step"] - 1]) / 2, abs=2e-5)


def test_weight_decay_is_for_matrices_alone() -> None:
    for optimizer in ("lion", "adamw"):
        for model in (make(Crate), make(ViT)):
            made = make_optimizer(model, short(optimizer=optimizer, learning_rate=0.1, weight_decay=0.5))
            names = {id(p): name for name, p in model.named_parameters()}
            assert sorted(id(p) for group in made.param_groups for p in group["params"]) == sorted(names)
            before = weights(model)
            for parameter in model.parameters():
                parameter.grad = torch.zeros_like(parameter)
            made.step()
            for name, parameter in model.named_parameters():
                decayed = parameter.ndim > 1 and name not in ("cls_token", "pos_embed")
                torch.testing.assert_close(parameter.detach(), before[name] * (0.95 if decayed else 1))


def test_the_images_are_normalized_by_the_models_own_config() -> None:
    model = make()
    model.pretrained_cfg = PretrainedCfg(mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 2.0))
    normed = normalize(torch.ones(2, 3, 4, 5), model)
    assert normed.shape == (2, 3, 4, 5)
    assert normed[0, :, 1, 1].tolist() == [1.0, 3.0, 0.5]


def test_bf16_is_for_training_alone(tmp_path: Path) -> None:
    model, seen = make(), []
    hook = model.blocks[0].attention.qkv.register_forward_hook(lambda *args: seen.append(args[2].dtype))
    train(model, Colours(), short(precision="bf16"), tmp_path)
    hook.remove()
    assert seen == STEPS * [torch.bfloat16]
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    fresh, images = make(seed=1), torch.rand(2, 3, 12, 12)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(model.eval()(images), fresh.eval()(images))  # no autocast is left behind


class Numbered(Colours):
    """Images by number, so that a batch is the same however it is shared out; knows how many there are."""

    def __len__(self) -> int:
        return 6

    def draw(self, batch_size: int, *, step: int, **options: Any) -> Batch:  # type: ignore[override]
        each = [Colours().draw(1, step=step * batch_size + place, **options) for place in range(batch_size)]
        self.drawn.append({"step": step, "images": batch_size})
        return Batch(torch.cat([one.images for one in each]), torch.cat([one.labels for one in each]), skipped=step % 2)


class InTurn(Numbered):
    """The same images, read in order."""

    def __init__(self) -> None:
        super().__init__()
        self.draw = None  # type: ignore

    def stream(self, recipe: Recipe, *, start: int, rank: int, world: int) -> Iterator[Batch]:
        for step in count(start):
            options = {"difficulty": recipe.difficulty_at(step), "size": recipe.size_at(step)}
            yield Numbered().draw(recipe.part_size(world), seed=recipe.seed, step=step, **options)


def test_workers_and_streams_give_the_same_batches(tmp_path: Path) -> None:
    expected = train(make(), Numbered(), short(), tmp_path / "alone")
    for name, source, workers in (("drawn", Numbered(), 2), ("stream", InTurn(), 0), ("streamed", InTurn(), 1)):
        assert same(weights(train(make(), source, short(), tmp_path / name, workers=workers)), weights(expected)), name


def test_a_batch_in_parts_is_the_same_batch(tmp_path: Path) -> None:
    recipe, source = short(optimizer="adamw", learning_rate=1e-3), Numbered()
    expected = train(make(), Numbered(), recipe, tmp_path / "whole")
    in_parts = train(make(), source, replace(recipe, accumulation=2), tmp_path / "parts", log_every=3)
    assert source.drawn == [{"step": number, "images": 2} for number in range(2 * STEPS)]
    for name, value in weights(expected).items():
        torch.testing.assert_close(weights(in_parts)[name], value, rtol=1e-4, atol=1e-6)
    assert [record["skipped"] for record in records(tmp_path / "parts")] == [3, 3, 3]
    assert records(tmp_path / "whole")[-1]["loss"] == pytest.approx(records(tmp_path / "parts")[-1]["loss"], abs=0.5)


def test_epochs_become_steps(tmp_path: Path) -> None:
    source = Numbered()
    train(make(), source, short(epochs=2.5), tmp_path)
    assert len(source.drawn) == 4  # 15 images in batches of 4
    with pytest.raises(InputError, match=r"2\.5 epochs of a Colours.*give steps"):
        train(make(), Colours(), short(epochs=2.5), tmp_path / "endless")


def test_a_linear_probe_moves_the_head_alone(tmp_path: Path) -> None:
    model = make()
    frozen = model.norm.weight.requires_grad_(False)
    trained = weights(train(model, Colours(), short(objective="linear_probe"), tmp_path))
    moved = {name for name, value in weights(make()).items() if not torch.equal(value, trained[name])}
    assert moved == {"head.weight", "head.bias"}
    assert not frozen.requires_grad and model.head.weight.requires_grad and model.cls_token.requires_grad


def test_pixels_are_learnt_without_labels_and_gone_on_with_exactly(tmp_path: Path) -> None:
    def masked() -> CrateMae:
        return make(CrateMae, num_classes=0)  # type: ignore

    recipe = short(objective="mae", steps=12, learning_rate=3e-3)
    expected = train(masked(), Colours(), recipe, tmp_path / "whole", log_every=1)
    losses = [record["loss"] for record in records(tmp_path / "whole")]
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3]) and "accuracy" not in records(tmp_path / "whole")[0]
    train(masked(), Colours(), recipe, tmp_path / "parts", stop_at=5)
    torch.manual_seed(77)
    assert same(weights(train(masked(), Colours(), recipe, tmp_path / "parts", workers=1)), weights(expected))
    with pytest.raises(InputError, match=r"a Crate does not predict pixels; make a crate_mae_\*"):
        train(make(), Colours(), recipe, tmp_path / "other")
    with pytest.raises(InputError, match="no head to name anything with"):
        train(masked(), Colours(), short(), tmp_path / "other")
    assert content(tmp_path) == ["parts", "whole"]


@dataclass
class Looks:
    """Notes when it is asked, and what of."""

    every: int
    seen: list[float]

    def measure(self, model: ImageTransformer) -> dict[str, float]:
        self.seen.append(float(model.head.bias.detach().sum()))
        return {"top1": len(self.seen) / 10}


def test_validation_comes_on_time_and_is_noted_once(tmp_path: Path) -> None:
    looks = Looks(4, [])
    train(make(), Colours(), short(), tmp_path, validation=looks, checkpoint_every=3, stop_at=5)
    model = train(make(), Colours(), short(), tmp_path, validation=looks)
    assert len(looks.seen) == 3 and looks.seen[-1] == float(model.head.bias.detach().sum())
    noted = [record for record in records(tmp_path) if "validation_top1" in record]
    assert noted == [{"step": step, "validation_top1": top1} for step, top1 in ((4, 0.1), (8, 0.2), (9, 0.3))]


# Killed, and called again


@pytest.mark.parametrize("options", [{}, {"optimizer": "adamw"}, {"precision": "bf16"}], ids=str)
def test_a_run_in_parts_is_the_same_run(tmp_path: Path, options: dict[str, Any]) -> None:
    recipe = short(learning_rate=1e-2, sizes=(12, 18), size_starts=(0.0, 0.6), **options)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    expected = train(make(), Colours(), recipe, whole, checkpoint_every=2, log_every=1)

    train(make(), Colours(), recipe, parts, checkpoint_every=2, log_every=1, stop_at=5)
    assert content(parts) == ["checkpoint-0000005", "metrics.jsonl"]
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
    assert content(parts) == content(whole) == ["checkpoint-0000009", "metrics.jsonl"]

    again = Colours()
    assert same(weights(train(make(seed=2), again, recipe, parts)), weights(expected))  # nothing is left to do
    assert again.drawn == []
    untouched = make(seed=3)
    train(untouched, again, recipe, tmp_path / "none", stop_at=0)
    assert again.drawn == [] and same(weights(untouched), weights(make(seed=3)))


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
    code = f"import test_loop, pathlib; test_loop.run_and_die_in_every_way(pathlib.Path({str(tmp_path)!r}))"
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, check=True, timeout=600)
    assert content(tmp_path / "step") == ["checkpoint-0000006", "metrics.jsonl"]
    for at in ("saving", "renaming"):
        assert content(tmp_path / at) == ["checkpoint-0000002", "checkpoint.partial", "metrics.jsonl"]
    assert content(tmp_path / "dropping") == ["checkpoint-0000002", "checkpoint-0000004", "metrics.jsonl"]

    recipe = short(learning_rate=1e-2)
    expected = train(make(), Colours(), recipe, tmp_path / "whole", checkpoint_every=2, log_every=1)
    for at, begun in zip(KILLED_AT, (6, 2, 2, 4), strict=True):
        source = Colours()
        model = train(make(seed=1), source, recipe, tmp_path / at, checkpoint_every=2, log_every=1)
        assert source.drawn[0]["step"] == begun
        assert same(weights(model), weights(expected))
        assert same(optimizer_state(tmp_path / at), optimizer_state(tmp_path / "whole"))
        assert content(tmp_path / at) == ["checkpoint-0000009", "metrics.jsonl"]
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


@pytest.mark.parametrize("damage", ["cut", "gone"])
@pytest.mark.parametrize("file", ["run.json", "model.safetensors", "optimizer.bin"])
def test_a_broken_checkpoint_is_named(tmp_path: Path, file: str, damage: str) -> None:
    train(make(), Colours(), short(), tmp_path, checkpoint_every=2, stop_at=2)
    path = tmp_path / "checkpoint-0000002" / file
    data = path.read_bytes()
    path.unlink()
    if damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    with pytest.raises(WeightsError, match="checkpoint-0000002 is broken"):
        train(make(), Colours(), short(), tmp_path)


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
        with pytest.raises(OutputError, match=r"cannot write to .*give another folder"):
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
    with pytest.raises(InputError, match=r"does not take precision 'bf16' here: .*already been initialized"):
        train(make(), Colours(), short(precision="bf16"), tmp_path / "second")
    assert content(tmp_path) == ["first"]


@pytest.mark.parametrize("wrong", [-1, CLASSES])
def test_a_label_that_is_no_class_is_refused(tmp_path: Path, wrong: int) -> None:
    class Mislabelled(Colours):
        def draw(self, *args: Any, **options: Any) -> Batch:
            batch = super().draw(*args, **options)
            batch.labels[1] = wrong
            return batch

    with pytest.raises(InputError, match=rf"labels go from .*{wrong}.*, and the model has 3 classes; make it with"):
        train(make(), Mislabelled(), short(), tmp_path)


def test_arguments_that_mean_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", list)  # none is installed
    with pytest.raises(InputError, match="a batch of 4 images cannot be divided among 1 processes x 3 parts"):
        train(make(), Colours(), short(accumulation=3), tmp_path / "out")
    with pytest.raises(InputError, match="workers is at least 0, not -1"):
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
