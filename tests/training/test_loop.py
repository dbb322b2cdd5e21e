"""The loop learns, follows the recipe, and a killed run ends as one that was left alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from small_training import (
    CLASSES,
    STEPS,
    Colours,
    Looks,
    content,
    make,
    records,
    same,
    short,
    weights,
)
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from whitebox_crate.errors import InputError
from whitebox_crate.models import Crate, CrateMae, ViT
from whitebox_crate.pretrained_cfg import PretrainedCfg
from whitebox_crate.training import Batch, Recipe, normalize, train
from whitebox_crate.training.loop import make_optimizer
from whitebox_crate.training.metrics_log import Progress, _duration, _steps_left


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
    assert content(out) == ["checkpoint-0000008", "checkpoint-0000009", "metrics.jsonl"]
    lines = records(out)
    assert [line["step"] for line in lines] == [2, 4, 6, 8, 9]  # the last is of one step alone
    for line in lines:
        assert set(line) == {"step", "loss", "accuracy", "difficulty", "size", "learning_rate"}
        assert line["loss"] > 0 and 0 <= line["accuracy"] <= 1
        assert line["difficulty"] == pytest.approx(recipe.difficulty_at(line["step"] - 1), abs=1e-4)
        assert line["learning_rate"] == recipe.learning_rate_at(line["step"] - 1)
        assert line["size"] == recipe.size_at(line["step"] - 1)
    shown = capsys.readouterr()
    assert "step 9/9  loss" in shown.err and shown.out == ""
    assert [" left" in line for line in shown.err.splitlines()] == 4 * [True] + [False]

    each = tmp_path / "each"
    train(make(), Colours(), recipe, each, log_every=1)
    losses = [line["loss"] for line in records(each)]
    for line in lines[:4]:
        assert line["loss"] == pytest.approx((losses[line["step"] - 2] + losses[line["step"] - 1]) / 2, abs=2e-5)


@pytest.mark.parametrize("starts", [(0.0, 0.4, 0.7), (0.0, 0.0, 1.0), (0.0, 0.55, 0.55)])
def test_the_time_left_counts_larger_images_by_their_pixels(starts: tuple[float, ...]) -> None:
    recipe = short(steps=20, sizes=(12, 24, 18), size_starts=starts)
    for step in range(1, 21):
        sides = [recipe.size_at(later) for later in range(step, 20)]
        assert _steps_left(recipe, step) == pytest.approx(sum((side / recipe.size_at(step - 1)) ** 2 for side in sides))
    assert [_duration(seconds) for seconds in (0, 12.3, 600, 36000)] == ["1 s", "12 s", "10 min", "10.0 h"]


def test_the_time_left_has_what_validation_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = count()  # a second passes between one look and the next
    monkeypatch.setattr("whitebox_crate.training.metrics_log.time.monotonic", lambda: float(next(clock)))
    monkeypatch.setattr(Progress, "check", lambda *_: torch.zeros(2))
    accelerator = Accelerator(cpu=True)
    progress = Progress(accelerator, short(steps=9), tmp_path)
    lines: list[list[str]] = []
    monkeypatch.setattr(progress, "_put", lambda record, shown: lines.append(shown))
    progress.write(1, 1)
    progress.validate(1, lambda: [next(clock) for _ in range(59)] and {})
    progress.write(2, 1)
    assert lines[0][-1] == "8 s left" and lines[2][-1] == "4 min left"  # 7 s, and 30 s a step


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
    with pytest.raises(InputError, match=r"2\.5 epochs need a number of images, but Colours.*give steps"):
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
    with pytest.raises(InputError, match="no head for classes"):
        train(masked(), Colours(), short(), tmp_path / "other")
    assert content(tmp_path) == ["parts", "whole"]


def test_validation_comes_on_time_and_is_noted_once(tmp_path: Path) -> None:
    looks = Looks(4, [])
    train(make(), Colours(), short(), tmp_path, validation=looks, checkpoint_every=3, stop_at=5)
    model = train(make(), Colours(), short(), tmp_path, validation=looks)
    assert len(looks.seen) == 3 and looks.seen[-1] == float(model.head.bias.detach().sum())
    noted = [record for record in records(tmp_path) if "validation_top1" in record]
    assert noted == [{"step": step, "validation_top1": top1} for step, top1 in ((4, 0.1), (8, 0.2), (9, 0.3))]
