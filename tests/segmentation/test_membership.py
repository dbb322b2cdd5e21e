"""Maps of ToST: membership of the layers that have it, and [CLS] attention of the two that do."""

import pytest
import torch
from small_models import GRID, images_for, small_model
from torch import Tensor

from whitebox_crate import capture
from whitebox_crate.errors import InputError, UnknownNameError
from whitebox_crate.models import ToST
from whitebox_crate.segmentation import (
    all_cls_attention,
    by_multiscale,
    cls_attention,
    default_layer,
    membership_maps,
    patch_features,
)


@pytest.fixture
def model() -> ToST:
    made = small_model("tost_tiny_12_patch8_224", dynamic_img_size=True)  # 3 layers of TSSA, 2 of class attention
    assert isinstance(made, ToST)
    return made


@pytest.fixture
def images(model: ToST) -> Tensor:
    return images_for(model)


@torch.no_grad()
def test_maps_divide_the_patches_among_the_heads(model: ToST, images: Tensor) -> None:
    with capture(model, "membership") as trace:
        model(images)
    for layer in (0, 1, 2, -3):
        maps = membership_maps(model, images, layer)
        assert maps.shape == (2, 2, *GRID)
        torch.testing.assert_close(maps.sum(1), torch.ones(2, *GRID))
        assert torch.equal(maps.flatten(2), trace["membership", layer])
    assert torch.equal(membership_maps(model, images), membership_maps(model, images, 2))
    compiled = torch.compile(model, backend="eager")
    assert torch.equal(membership_maps(compiled, images), membership_maps(model, images))
    assert membership_maps(model, images_for(model, grid=(3, 5))).shape == (2, 2, 3, 5)


def test_what_has_no_membership_is_refused(model: ToST, images: Tensor) -> None:
    with pytest.raises(UnknownNameError, match=r"layer 4 has no state 'membership'.*the layers 0, 1, 2 have it"):
        membership_maps(model, images, -1)
    crate = small_model("crate_nano")
    with pytest.raises(UnknownNameError, match="unknown state 'membership'"):
        membership_maps(crate, images_for(crate))
    images[1, 0, 0, 0] = torch.nan
    with pytest.raises(InputError, match=r"in images \[1\] of 2"):
        membership_maps(model, images)


@torch.no_grad()
def test_attention_is_that_of_the_last_two_layers(model: ToST, images: Tensor) -> None:
    assert default_layer(model) == 4
    every = all_cls_attention(model, images)
    assert every.shape == (2, 2, 2, *GRID)
    for row, layer in enumerate((3, 4)):
        assert torch.equal(every[:, row], cls_attention(model, images, layer))
    with capture(model, "attention") as trace:
        model(images)
    assert torch.equal(every[:, 1].flatten(2), trace["attention", 4][:, :, 0, 1:])
    with pytest.raises(UnknownNameError, match="layer 2 has no state 'attention'"):
        cls_attention(model, images, 2)


@torch.no_grad()
def test_several_layers_together_are_those_that_have_attention(model: ToST, images: Tensor) -> None:
    both, last = (by_multiscale(model, images[0], layer=layer, scales=[1]) for layer in (0, None))
    assert both.maps.shape == (4, *GRID) and last.maps.shape == (2, *GRID)
    assert torch.equal(both.maps[2:], last.maps)


@torch.no_grad()
def test_features_are_of_the_patches_whether_cls_is_there_or_not(model: ToST, images: Tensor) -> None:
    with capture(model, "output") as trace:
        model(images)
    for layer, tokens in ((1, trace["output", 1]), (4, trace["output", 4][:, 1:])):
        features, grid = patch_features(model, images, layer, "output")
        assert grid == GRID and torch.equal(features, tokens)
