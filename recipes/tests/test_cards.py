"""The cards of the shipped weights say what was measured, and how the weights were chosen."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import whitebox_crate
from recipes.measure import table

ROOT = Path(__file__).parents[2]
CARDS, RESULTS = ROOT / "docs" / "cards", ROOT / "recipes" / "results"
WEIGHTS = {"crate_nano": "crate_nano.tuxpaint_composites", "crate_pico": "crate_pico"}


@pytest.mark.parametrize("measured", sorted(RESULTS.glob("crate_*.json")), ids=lambda path: path.name)
def test_the_card_says_what_was_measured(measured: Path) -> None:
    results = json.loads(measured.read_text())
    name = "_".join(measured.stem.split("_")[:2])  # crate_nano_96: the model, and the side of the images
    assert table(results) in (CARDS / f"{name}.md").read_text(encoding="utf-8")
    facts = whitebox_crate.get_pretrained_cfg(WEIGHTS[name])
    chosen = results["crate"]["mean"]["chosen"]
    assert (chosen["layer"], chosen["head"]) == (facts.attention_layer, facts.attention_head)


@pytest.mark.parametrize("measured", sorted((RESULTS / "validation").glob("*.json")), ids=lambda path: path.name)
def test_the_card_says_how_its_weights_were_chosen(measured: Path) -> None:
    found = json.loads(measured.read_text())["crate"]
    (mean, half), best = found["mean"]["chosen"]["iou"], found["mean"]["best_head_by_layer"][4][0]
    named = [found[f"accuracy_{where}_backgrounds"] for where in ("training", "held_out")]
    row = f"/validation/{measured.name})) | {mean:.3f} ± {half:.3f} | {best:.3f} | {named[0]:.1%} | {named[1]:.1%} |"
    assert row in (CARDS / "crate_nano.md").read_text(encoding="utf-8")
