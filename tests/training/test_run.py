"""A run as a whole, from Python: what recipe, config and card say is what the data were, as from the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from whitebox_crate import create_model
from whitebox_crate.errors import InputError, UnknownNameError, WeightsError
from whitebox_crate.training import (
    PRESETS,
    Batch,
    Recipe,
    finish,
    fit_batch,
    last_metrics,
    make_model,
    open_images,
    recipe_of,
    train,
    train_and_save,
)

COLOURS = {"blue": 2, "green": 1, "red": 0}
SMALL: dict[str, Any] = {"batch_size": 6, "sizes": (12,), "size_starts": (0.0,)}


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, random = tmp_path_factory.mktemp("colours"), np.random.default_rng(0)
    for name, channel in COLOURS.items():
        (root / name).mkdir()
        for index in range(6):
            pixels = random.integers(0, 90, (14, 16, 3), dtype=np.uint8)
            pixels[..., channel] += 120
            Image.fromarray(pixels).save(root / name / f"{index}.png")
    return root


class Noise:
    """Noise with labels of three classes, which says nothing of itself."""

    def draw(self, batch_size: int, *, seed: int, step: int, difficulty: float = 1.0, size: int | None = None) -> Batch:
        images = torch.rand(batch_size, 3, size or 12, size or 12, generator=torch.Generator().manual_seed(step))
        return Batch(images, torch.arange(batch_size) % 3)


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_what_the_data_are_is_recorded_whatever_the_recipe_said(colours: Path, tmp_path: Path) -> None:
    images = open_images(colours, crop="random", flip=True)
    recipe = Recipe(epochs=1, curriculum=0, **SMALL)
    assert (recipe.crop, recipe.flip) == ("centre", False)
    model = make_model("crate_nano", images, recipe, depth=1)
    folder = train_and_save(model, images, recipe, tmp_path)
    assert folder == tmp_path / "model"
    written = read(folder / "recipe.json")
    assert written == read(tmp_path / "recipe.json")
    assert [written["recipe"][name] for name in ("crop", "flip", "steps")] == ["random", True, 3]
    assert written["data"] == f"{colours} (train): 18 images of 3 classes"
    again = create_model(f"local-dir:{folder}", pretrained=True).pretrained_cfg
    assert again.label_names == tuple(COLOURS) and again.origin.endswith("seed 0") and not again.license
    assert "names the 3 classes" in (folder / "README.md").read_text()


def test_train_and_finish_say_the_same(colours: Path, tmp_path: Path) -> None:
    images = open_images(colours, crop="random", flip=True)
    recipe = Recipe(epochs=1, curriculum=0, **SMALL)
    model = create_model("crate_nano", depth=1, img_size=12, num_classes=3, pretrained_cfg_overlay={"mean": (0.5,) * 3})
    assert len(model.pretrained_cfg.label_names) != 3
    train(model, images, recipe, tmp_path)
    assert read(tmp_path / "checkpoint-0000003" / "run.json")["run"]["crop"] == "random"
    folder = finish(model, tmp_path / "model", recipe, data=images, metrics=last_metrics(tmp_path))
    written, config = read(folder / "recipe.json"), read(folder / "config.json")
    assert [written["recipe"][name] for name in ("crop", "flip", "steps")] == ["random", True, 3]
    assert config["label_names"] == list(COLOURS) and config["pretrained_cfg"]["mean"] == [0.5] * 3
    card = (folder / "README.md").read_text()
    assert "names the 3 classes" in card and "| crop | random |" in card and "18 images of 3 classes" in card


def test_a_model_that_a_user_made_says_what_it_was_trained_on(colours: Path, tmp_path: Path) -> None:
    images = open_images(colours)
    model = create_model("crate_nano", pretrained=True, num_classes=3, img_size=12)
    assert model.pretrained_cfg.attention_layer is not None  # measured on weights that are no more
    train(model, images, Recipe(steps=1, **SMALL), tmp_path)
    cfg = model.pretrained_cfg
    assert cfg.label_names == tuple(COLOURS) and cfg.license == "apache-2.0"
    assert (cfg.attention_layer, cfg.attention_head, cfg.attention_size) == (None, None, None)
    assert (cfg.tag, cfg.sha256, cfg.paper, cfg.checked) == ("", "", "", "")
    assert cfg.origin.endswith(f"train on {colours} (train), seed 0, from crate_nano")
    folder = finish(model, tmp_path / "model", Recipe(steps=1, **SMALL), data=images, metrics=last_metrics(tmp_path))
    card = (folder / "README.md").read_text()
    assert "blue, green, red" in card and "258" not in card and "tuxpaint" not in card and "docs/cards" not in card
    assert read(folder / "recipe.json")["class_names"] == list(COLOURS)
    train(model, images, Recipe(steps=1, **SMALL), tmp_path)  # goes on
    assert model.pretrained_cfg == cfg


@pytest.mark.parametrize(("images", "batch"), [(600, 256), (256, 256), (255, 64), (24, 8), (3, 1), (1, 1), (None, 256)])
def test_a_batch_fits_the_data(images: int | None, batch: int) -> None:
    source: Any = type("Counted", (Noise,), {"images": images})()
    recipe = recipe_of("finetune", "crate_nano")
    fitted = fit_batch(recipe, source)
    assert fitted.batch_size == batch and (fitted is recipe) == (batch == 256)
    assert batch in (1, 256) or 2 * batch <= (images or 0) < 4 * batch  # two steps an epoch


def test_names_of_other_classes_go(tmp_path: Path) -> None:
    model = create_model("crate_nano", depth=1, img_size=12, num_classes=3)
    train(model, Noise(), Recipe(steps=1, **SMALL), tmp_path)
    assert model.pretrained_cfg.label_names == () and model.pretrained_cfg.num_classes == 3
    folder = finish(model, tmp_path / "model", Recipe(steps=1, **SMALL), data=Noise(), metrics={})
    card = (folder / "README.md").read_text()
    assert "258" not in card and "Noise: images" in card


def test_a_recipe_of_a_preset_has_the_size_of_the_model() -> None:
    assert recipe_of("finetune", "crate_nano", steps=7).sizes == (96,)
    recipe = recipe_of(
        "finetune", "crate_nano", model_options={"img_size": 48}, steps=7, sizes=(24, 48), size_starts=(0, 0.5)
    )
    assert (recipe.sizes, recipe.steps, recipe.epochs) == ((24, 48), 7, 0)
    assert recipe_of("composites", "crate_nano") == PRESETS["composites"].recipe
    for preset in ("finetune", "composites"):
        with pytest.raises(InputError, match="0 epochs train nothing"):
            recipe_of(preset, "crate_nano", epochs=0.0)
    assert recipe_of("finetune", "crate_nano", steps=7, epochs=0.0).steps == 7
    with pytest.raises(InputError, match="give one of them"):
        recipe_of("finetune", "crate_nano", steps=7, epochs=2.0)
    with pytest.raises(UnknownNameError, match="finetune"):
        recipe_of("finetun", "crate_nano")
    with pytest.raises(UnknownNameError, match="learning_rate"):
        recipe_of("finetune", "crate_nano", learning_rates=1)


def test_a_model_of_another_kind_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("whitebox_crate.training.run.create_model", lambda *_, **__: torch.nn.Identity())
    with pytest.raises(InputError, match="mine makes a Identity, which is not trained here"):
        recipe_of("finetune", "mine", steps=7)
    with pytest.raises(InputError, match="mine makes a Identity, which is not trained here"):
        make_model("mine", Noise(), Recipe(steps=1, **SMALL))


def test_fresh_weights_are_those_of_the_seed_and_leave_other_draws_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    made = [make_model("crate_nano", Noise(), Recipe(steps=1, seed=seed, **SMALL), depth=1) for seed in (1, 1, 2)]
    assert torch.equal(torch.rand(3), expected)
    first, again, other = (model.head.weight for model in made)
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_a_run_that_an_older_version_began_is_gone_on_with(colours: Path, tmp_path: Path) -> None:
    images, recipe = open_images(colours, crop="random"), Recipe(steps=2, **SMALL)
    whole = train(make_model("crate_nano", images, recipe, depth=1), images, recipe, tmp_path / "whole")
    train(make_model("crate_nano", images, recipe, depth=1), images, recipe, tmp_path / "old", stop_at=1)
    path = tmp_path / "old" / "checkpoint-0000001" / "run.json"
    written = read(path)
    written["run"]["trains"] = {"supervised": "all"}[written["run"].pop("objective")]
    written["run"] |= {"crop": "centre", "flip": True, "label_names": []}  # what recipe and config said
    path.write_text(json.dumps(written))
    (tmp_path / "old" / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0, "left_out": 2}\n')
    again = train(make_model("crate_nano", images, recipe, depth=1), images, recipe, tmp_path / "old")
    for name, value in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
    assert last_metrics(tmp_path / "old")["training_skipped"] == 2


def changed(root: Path, how: str) -> None:
    """Other data of the same classes, in the folder that a run was begun with."""
    if how == "two class folders exchanged":
        (root / "red").rename(root / "now blue")
        (root / "blue").rename(root / "red")
        (root / "now blue").rename(root / "blue")
    elif how == "a picture more":
        shutil.copy(root / "red" / "0.png", root / "red" / "6.png")
    elif how == "a picture of another size":
        Image.new("RGB", (40, 40)).save(root / "red" / "0.png")
    elif how == "a picture of another class":
        (root / "red" / "0.png").rename(root / "blue" / "6.png")
    elif how == "a picture of another name":
        (root / "red" / "0.png").rename(root / "red" / "00.png")


CHANGES = {
    "two class folders exchanged": "sizes",  # names and labels are the same
    "a picture more": r"images \(18, now 19\), other labels, other names, other sizes",
    "a picture of another size": "sizes",
    "a picture of another class": "labels, other names, other sizes",
    "a picture of another name": "names",
}


@pytest.mark.parametrize("streaming", [False, True], ids=["by number", "streamed"])
def test_a_run_does_not_go_on_with_data_that_changed(colours: Path, tmp_path: Path, streaming: bool) -> None:
    def begin(root: Path, stop_at: int | None = None) -> None:
        images = open_images(root, streaming=streaming)
        model = make_model("crate_nano", images, recipe, depth=1)
        train(model, images, recipe, tmp_path / "run", stop_at=stop_at)

    recipe = Recipe(steps=2, **SMALL)
    shutil.copytree(colours, tmp_path / "data")
    begin(tmp_path / "data", stop_at=1)
    for how, what in CHANGES.items():
        shutil.copytree(colours, tmp_path / how)
        changed(tmp_path / how, how)
        what = what.replace("images", "files").replace("labels, other ", "") if streaming else what
        with pytest.raises(WeightsError, match=f"the data have other {what}.*; use the same, or another"):
            begin(tmp_path / how)
    begin((tmp_path / "data").rename(tmp_path / "elsewhere"))
