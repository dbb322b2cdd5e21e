"""Runs over data sets as functions: what they return is what they write, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from labelled_images import make_folder
from small_models import small_model

from whitebox_crate import InputError, UnknownNameError, create_model
from whitebox_crate.evaluation import Curves, Run, evaluate_attention, evaluate_maskcut, read_folder
from whitebox_crate.models import ImageTransformer


@pytest.fixture(scope="module")
def model() -> ImageTransformer:
    return create_model("crate_nano", depth=2, num_classes=3, img_size=48, dynamic_img_size=True).eval()


def test_what_is_returned_is_what_is_written(model: ImageTransformer, tmp_path: Path) -> None:
    make_folder(tmp_path, 2)
    run = Run(tmp_path / "out", about={"which": "ours"})
    outcome = evaluate_attention(run, model, read_folder(tmp_path), name="mine", size=24, layer=-1)
    assert outcome is not None
    assert json.loads(outcome.path.read_text()) == outcome.results
    assert outcome.path.with_suffix(".md").read_text() == outcome.table
    assert outcome.table.startswith("mine, 2 images at 24 pixels\n\n| mIoU")
    assert outcome.results["settings"]["which"] == "ours" and outcome.results["layer"] == 1


def test_the_size_is_the_models_where_none_is_given(model: ImageTransformer, tmp_path: Path) -> None:
    make_folder(tmp_path, 1)
    outcome = evaluate_attention(Run(tmp_path / "out"), model, read_folder(tmp_path), name="mine")
    assert outcome is not None and outcome.results["settings"]["size"] == 48


def test_missing_files_are_refused_before_anything_is_written(model: ImageTransformer, tmp_path: Path) -> None:
    (name, _) = make_folder(tmp_path, 2)
    (tmp_path / "masks" / f"{name}.png").unlink()
    with pytest.raises(InputError, match=r"1 files of 2 .* or leave them out with skip_broken=True"):
        evaluate_attention(Run(tmp_path / "out"), model, read_folder(tmp_path), name="mine")
    assert not (tmp_path / "out").exists()


def test_shares_and_cosines_are_in_their_range(model: ImageTransformer, tmp_path: Path) -> None:
    make_folder(tmp_path, 1)
    run, data = Run(tmp_path / "out"), read_folder(tmp_path)
    with pytest.raises(InputError, match="keep must be a share"):
        evaluate_attention(run, model, data, name="mine", keep=0)
    with pytest.raises(InputError, match="keep must be a share"):
        Curves(run, data, keep=2).by_layer([("mine", model)])
    with pytest.raises(InputError, match="tau must be a cosine"):
        evaluate_maskcut(run, model, "nowhere.json", tmp_path, name="mine", tau=1)
    assert not run.folder.exists()


def test_each_measurement_of_curves_has_its_own_records(model: ImageTransformer, tmp_path: Path) -> None:
    make_folder(tmp_path, 1)
    curves = Curves(Run(tmp_path / "out"), read_folder(tmp_path), size=24)
    (curve,) = curves.by_noise([("local-dir:mine", model)], strengths=[0, 50], shares=[0.5], layer=0)
    assert [point["x"] for point in curve["points"]] == [0, 50]
    folders = sorted(path.name for path in (tmp_path / "out" / "records").iterdir())
    assert folders == ["0-local-dir_mine-0.5-0", "0-local-dir_mine-0.5-50"]


def test_of_tost_the_layers_that_have_attention_are_measured_and_named(tmp_path: Path) -> None:
    tost = small_model("tost_tiny_12_patch8_224", dynamic_img_size=True)  # 3 layers of TSSA, 2 of class attention
    make_folder(tmp_path, 2)
    run, data = Run(tmp_path / "out"), read_folder(tmp_path)
    outcome = evaluate_attention(run, tost, data, name="mine", size=24)
    assert outcome is not None
    results = outcome.results
    assert results["layers"] == [3, 4] and results["layer"] == 4
    assert results["rules"]["mean"]["miou"] == results["rules"]["mean"]["miou_by_layer"][1]
    assert {half["layer"] for half in results["rules"]["mean"]["one_head"]["halves"]} <= {3, 4}
    assert "| layer 3 | layer 4 |" in outcome.table
    (curve,) = Curves(Run(tmp_path / "curves"), data, size=24).by_layer([("mine", tost)])
    assert [point["x"] for point in curve["points"]] == [3, 4]
    assert [point["best_head"]["mean"] for point in curve["points"]] == results["rules"]["mean"]["miou_by_layer"]
    with pytest.raises(UnknownNameError, match="layer 1 has no state 'attention'"):
        evaluate_attention(Run(tmp_path / "other"), tost, data, name="mine", size=24, layer=1)
    assert not (tmp_path / "other").exists()
