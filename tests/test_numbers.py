"""Whole numbers as arguments: those of numpy are taken like Python's, anything else is refused in words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from small_models import FAMILIES, small_model

from whitebox_crate import InputError, capture, create_model, save_pretrained, segment
from whitebox_crate._ahead import in_order
from whitebox_crate.analysis import logit_lens
from whitebox_crate.dtypes import faster_dtype
from whitebox_crate.models import CrateCBT
from whitebox_crate.models._features import FeatureInfo
from whitebox_crate.segmentation import upsample
from whitebox_crate.segmentation.pca import pca_maps

NAME = FAMILIES["crate"]
PHOTO = Image.effect_noise((60, 50), 60).convert("RGB")


class Sides(NamedTuple):
    height: Any
    width: Any


def model() -> Any:
    return small_model(NAME, dynamic_img_size=True)


def reset(number: Any) -> Any:
    made = model()
    made.reset_classifier(number)
    return made.num_classes


def feature_info(layers: Any) -> Any:
    return FeatureInfo(model().feature_info, layers)


def seen(**options: Any) -> Any:
    network = model()
    with torch.no_grad(), capture(network, "attention", **options) as trace:
        network(torch.ones(1, 3, 36, 48))
    return trace["attention", -1].shape


TAKE: dict[str, Callable[[Any], Any]] = {
    "the last layers": lambda number: seen(layers=number),
    "chunk": lambda number: seen(queries=range(4), chunk=number),
    "head": lambda number: segment(PHOTO, model(), "attention", head=number - 1).masks.tolist(),
    "n": lambda number: segment(PHOTO, model(), "maskcut", n=number).masks.tolist(),
    "size": lambda number: segment(PHOTO, model(), size=24 * number).masks.tolist(),
    "classes": reset,
    "workers": lambda number: list(in_order(str, [1], number)),
    "batch": lambda number: faster_dtype(model(), batch=number) is not None,
    "image": lambda number: create_model(NAME, img_size=(6 * number, 12), depth=1).img_size,
    "up-sampling": lambda number: upsample(torch.eye(2), (4 * number, number)).tolist(),
    "smooth up-sampling": lambda number: upsample(torch.eye(2), (4 * number, number), "bilinear").tolist(),
    "principal maps": lambda number: pca_maps([torch.eye(6)], (number, 3))[0].tolist(),
    "layers of CBT": lambda number: str(CrateCBT(depth=3, cbt_depth=number)),
    "likely classes": lambda number: logit_lens(model(), torch.ones(1, 3, 36, 48)).top(number),
    "last maps": lambda number: feature_info(number).channels(),
    "one map": lambda number: feature_info([0, 1]).channels(number),
}


@pytest.mark.parametrize("what", TAKE)
def test_numbers_of_numpy_are_taken(what: str) -> None:
    assert TAKE[what](np.int64(2)) == TAKE[what](2)


@pytest.mark.parametrize("value", ["2", 2.0, True, [], PHOTO], ids=["text", "fraction", "truth", "list", "photograph"])
@pytest.mark.parametrize("what", ["chunk", "n", "classes", "workers", "batch"])
def test_what_is_no_whole_number_is_refused(what: str, value: Any) -> None:
    with pytest.raises(InputError, match=r"must be a whole number, at least \d, not (?s:.{1,50})$"):
        TAKE[what](value)


@pytest.mark.parametrize("value", ["96", [96], 0, float("nan")])
def test_a_size_that_is_none_is_refused(value: Any) -> None:
    with pytest.raises(InputError, match="pixels"):
        segment(PHOTO, model(), size=value)


def test_pairs_of_numpys_numbers_are_saved(tmp_path: Any) -> None:
    side = np.int64(16)
    save_pretrained(create_model(NAME, img_size=Sides(side, side), patch_size=(side, side), depth=1), tmp_path)
    assert create_model(f"local-dir:{tmp_path}", pretrained=True).img_size == (16, 16)
