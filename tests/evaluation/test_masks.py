"""Masks of a method over labelled images: against `segment` itself, and means counted by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from labelled_images import make_folder
from small_models import FAMILIES, small_model

from whitebox_crate import segment
from whitebox_crate.errors import InputError, UnknownNameError
from whitebox_crate.evaluation import Run, evaluate_masks, masks, read_folder, summarize_masks
from whitebox_crate.models import ImageTransformer
from whitebox_crate.segmentation import mask_iou


@pytest.fixture(scope="module")
def model() -> ImageTransformer:
    return small_model(FAMILIES["crate"], dynamic_img_size=True).eval()


@pytest.mark.parametrize(("method", "edges"), [("multiscale", "colours"), ("maskcut", "smooth")])
def test_the_masks_are_those_of_segment(model: ImageTransformer, tmp_path: Path, method: str, edges: str) -> None:
    make_folder(tmp_path, 3)
    data = read_folder(tmp_path)
    outcome = evaluate_masks(Run(tmp_path / "out"), model, data, name="small", method=method, edges=edges, size=48)
    assert outcome is not None
    ious = []
    for _, pair in data.items:
        image, labels = pair.read()
        found = segment(image, model, method, edges=edges, size=48).masks
        of = [float(mask_iou(found, labels == label).max()) for label in labels.unique().tolist() if label]
        ious.append(sum(of) / len(of))
    assert outcome.results["all"]["miou"] == pytest.approx(sum(ious) / 3)
    assert outcome.results["even"]["miou"] == pytest.approx((ious[0] + ious[2]) / 2)
    assert outcome.results["settings"]["method"] == method


def test_means_and_intervals() -> None:
    records = [("a", {"cat": 0.2, "dog": 0.6}), ("b", {}), ("c", {"cat": 0.8})]
    found = summarize_masks(records)
    assert (found["all"]["images"], found["all"]["miou"]) == (2, pytest.approx(0.6))
    assert found["all"]["half_interval"] == pytest.approx(1.96 * float(torch.tensor([0.4, 0.8]).std()) / 2**0.5)
    assert found["by_class"]["cat"]["miou"] == pytest.approx(0.5)
    assert (found["odd"]["miou"], found["odd"]["half_interval"]) == (pytest.approx(0.8), None)
    with pytest.raises(InputError, match="no image has an object"):
        summarize_masks([("b", {})])


def test_names_are_checked_before_anything_is_measured(model: ImageTransformer, tmp_path: Path) -> None:
    make_folder(tmp_path, 1)
    with pytest.raises(UnknownNameError, match="multiscale"):
        evaluate_masks(Run(tmp_path / "out"), model, read_folder(tmp_path), name="small", method="multiscal")
    assert not (tmp_path / "out").exists()


def test_records_of_other_masks_are_not_mixed_in(
    model: ImageTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_folder(tmp_path, 1)
    run, data = Run(tmp_path / "out"), read_folder(tmp_path)
    assert evaluate_masks(run, model, data, name="small", size=48) is not None
    monkeypatch.setattr(masks, "REVISION", masks.REVISION + 1)
    with pytest.raises(InputError, match="method_revision"):
        evaluate_masks(run, model, data, name="small", size=48)
