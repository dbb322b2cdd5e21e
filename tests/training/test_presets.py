"""Presets hold the numbers that their sources state, and say where each is from."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from whitebox_crate.training import Recipe
from whitebox_crate.training.presets import PRESETS

LION = {"optimizer": "lion", "weight_decay": 0.05, "label_smoothing": 0.1, "objective": "supervised"}
ADAMW = {"optimizer": "adamw", "label_smoothing": 0.0}
STATED: dict[str, dict[str, Any]] = {
    "imagenet21k": {**LION, "epochs": 90, "batch_size": 4096, "learning_rate": 9.6e-5, "crop": "centre"},
    "imagenet1k": {**LION, "epochs": 200, "batch_size": 512, "learning_rate": 2e-4, "crop": "random", "warmup": 0.1},
    "cbt": {**LION, "epochs": 150, "batch_size": 256, "learning_rate": 2e-4, "crop": "random", "warmup": 20 / 150},
    "finetune": {**ADAMW, "epochs": 200, "batch_size": 256, "learning_rate": 5e-5, "weight_decay": 0.01, "warmup": 0},
    "linear-probe": {**ADAMW, "epochs": 90, "weight_decay": 0, "objective": "linear_probe"},
    "mae": {**ADAMW, "epochs": 800, "batch_size": 4096, "learning_rate": 2.4e-3, "objective": "mae", "warmup": 0.05},
}


@pytest.mark.parametrize("name", STATED)
def test_a_preset_has_the_numbers_of_its_source(name: str) -> None:
    recipe = asdict(PRESETS[name].recipe)
    assert {key: recipe[key] for key in STATED[name]} == STATED[name]
    assert (recipe["sizes"], recipe["size_starts"], recipe["curriculum"], recipe["flip"]) == ((224,), (0.0,), 0, True)


def test_what_crate_nano_was_trained_with_is_the_default() -> None:
    assert PRESETS["composites"].recipe == Recipe()
    assert {*PRESETS} == {*STATED, "composites"}


@pytest.mark.parametrize("name", PRESETS)
def test_the_source_names_what_is_stated_and_what_is_ours(name: str) -> None:
    source, recipe = PRESETS[name].source, PRESETS[name].recipe
    assert "arXiv" in source or "released" in source
    assert "ours" in source or "this package's" in source
    if name != "composites":
        assert f"{recipe.epochs:g} epochs" in source
    assert "\n" not in source


@pytest.mark.parametrize("name", PRESETS)
def test_the_page_on_training_says_the_same(name: str) -> None:
    page = " ".join((Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8").split())
    recipe = PRESETS[name].recipe
    assert f"- `{name}`: {PRESETS[name].source}." in page
    row = page.partition(f"| `{name}` | ")[2].partition(f"{'larger' if name == 'composites' else 'flip'} |")[0]
    rate, decay = f"{recipe.learning_rate:g}, ", f"{recipe.weight_decay:g}"
    optimizer = {"lion": "Lion", "adamw": "AdamW"}[recipe.optimizer]
    assert row.startswith(f"{optimizer}, {rate}{decay}")
    assert f"| {recipe.batch_size} | " in row
    epochs = f"| {recipe.epochs:g}, {recipe.epochs * recipe.warmup:g} |"
    assert (epochs if recipe.epochs else f"| {recipe.steps} steps, {recipe.warmup:.0%} |") in row
    assert f"| {recipe.label_smoothing:g} |" in row or recipe.objective == "mae"
