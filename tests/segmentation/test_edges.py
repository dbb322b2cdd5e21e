"""Edges: from levels on the grid to disjoint masks at pixels."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from whitebox_crate import InputError, UnknownNameError
from whitebox_crate.segmentation import EDGES, mask_iou, upsample
from whitebox_crate.segmentation.edges import choose_edges

PHOTO = torch.zeros(3, 40, 60, dtype=torch.uint8)


def levels(seed: int = 0, n: int = 3) -> Tensor:
    """n objects that share no patch."""
    generator = torch.Generator().manual_seed(seed)
    owner = torch.randint(0, n + 1, (4, 6), generator=generator)
    size = 0.1 + torch.rand(n, 4, 6, generator=generator)
    return torch.where(owner == torch.arange(1, n + 1)[:, None, None], size, -size)


@pytest.mark.parametrize("name", EDGES)
def test_masks_are_disjoint_whole_and_of_the_size_of_the_photograph(name: str) -> None:
    masks = choose_edges(name)(levels(), PHOTO)
    assert masks.shape == (3, 40, 60) and masks.dtype == torch.bool
    assert (masks.sum(0) <= 1).all() and masks.flatten(1).any(1).all()
    centres = masks[:, 5::10, 5::10]  # pixels beside the centres of patches
    assert (centres & (levels() > 0)).flatten(1).any(1).all()


@pytest.mark.parametrize("name", EDGES)
def test_no_object_is_no_mask(name: str) -> None:
    assert choose_edges(name)(torch.zeros(0, 4, 6), PHOTO).shape == (0, 40, 60)


def test_patches_are_whole() -> None:
    assert torch.equal(choose_edges("patches")(levels(), PHOTO), upsample(levels() > 0, (40, 60)))


def test_smooth_edges_cut_the_corners_of_patches() -> None:
    one = torch.full((1, 4, 6), -1.0)
    one[0, 1:3, 2:4] = 1.0
    mask = choose_edges("smooth")(one, PHOTO)[0]
    assert mask[20, 30] and mask[20, 21] and not mask[10, 20] and not mask[29, 39]


@pytest.mark.parametrize("name", ["guided", "colours"])
def test_outlines_follow_the_edges_of_the_photograph(name: str) -> None:
    photo = PHOTO.repeat(1, 4, 4)
    photo[0, 43:117, 85:163] = 255
    one = torch.full((1, 4, 6), -1.0)
    one[0, 1:3, 2:4] = 1.0
    mask = choose_edges(name)(one, photo)[0]
    assert (
        float(mask_iou(mask, photo[0] > 0))
        > 0.98
        > float(mask_iou(choose_edges("patches")(one, photo)[0], photo[0] > 0))
    )


def test_a_speck_keeps_its_patch() -> None:
    speck = torch.full((1, 4, 6), -1.0)
    speck[0, 1, 1] = 1e-6
    assert int(choose_edges("smooth")(speck, PHOTO).sum()) == 100


def test_unknown_edges() -> None:
    with pytest.raises(UnknownNameError, match="smooth"):
        choose_edges("smoth")
    with pytest.raises(InputError, match="a name or a function"):
        choose_edges(3)  # type: ignore[arg-type]
