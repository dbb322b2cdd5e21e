"""IoU is a similarity of sets, the best head is the best, and mIoU follows equations 13 and 14."""

from statistics import mean

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from whitebox_crate.errors import InputError
from whitebox_crate.segmentation import best_head_iou, mask_iou, mean_iou
from whitebox_crate.segmentation.metrics import group_means


@st.composite
def mask_sets(draw: st.DrawFn) -> Tensor:
    """Masks (batch, heads, height, width) with at least one pixel each."""
    shape = [
        draw(st.integers(1, 3)),
        draw(st.integers(1, 4)),
        draw(st.integers(1, 6)),
        draw(st.integers(1, 6)),
    ]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    masks = torch.rand(shape, generator=generator) < draw(st.sampled_from([0.1, 0.5, 0.9]))
    masks[..., 0, 0] |= ~masks.flatten(-2).any(dim=-1)
    return masks


def iou_of_sets(mask: Tensor, target: Tensor) -> float:
    """The definition, on sets of pixels."""
    a, b = ({tuple(pixel) for pixel in m.nonzero().tolist()} for m in (mask, target))
    return len(a & b) / len(a | b) if a | b else 1.0


@given(masks=mask_sets())
def test_iou_is_intersection_over_union_of_sets(masks: Tensor) -> None:
    target = masks[:, :1].roll(1, dims=-1)
    ious = mask_iou(masks, target)
    assert ious.shape == masks.shape[:2]
    expected = [[iou_of_sets(m, target[i, 0]) for m in image] for i, image in enumerate(masks)]
    assert torch.allclose(ious, torch.tensor(expected))


@given(masks=mask_sets())
def test_iou_is_a_similarity(masks: Tensor) -> None:
    a, b = masks.unsqueeze(1), masks.unsqueeze(2)  # each head with each
    ious = mask_iou(a, b)
    assert torch.equal(ious, mask_iou(b, a))
    assert ((ious >= 0) & (ious <= 1)).all()
    assert torch.equal(ious == 1, (a == b).flatten(-2).all(dim=-1))
    assert torch.equal(ious == 0, ~(a & b).flatten(-2).any(dim=-1))


def test_two_empty_masks_are_equal() -> None:
    empty, full = torch.zeros(3, 3).bool(), torch.ones(3, 3).bool()
    assert mask_iou(empty, empty) == 1
    assert mask_iou(empty, full) == mask_iou(full, empty) == 0


@given(masks=mask_sets(), columns=st.integers(1, 5))
def test_void_pixels_count_for_nothing(masks: Tensor, columns: int) -> None:
    """Cutting pixels off and calling them invalid is the same, whatever is marked in them."""
    target = masks[:, 0].roll(1, dims=-1)
    wide_masks, wide_target = (torch.cat([m, ~m, m], dim=-1) for m in (masks, target))
    valid = torch.zeros_like(wide_target)
    valid[..., : masks.shape[-1]] = True
    wide = mask_iou(wide_masks, wide_target[:, None], valid=valid[:, None])
    assert torch.equal(wide, mask_iou(masks, target[:, None]))
    wide_best = best_head_iou(wide_masks, wide_target, valid=valid)
    assert torch.equal(wide_best[0], best_head_iou(masks, target)[0])


@given(masks=mask_sets(), seed=st.integers(0, 99))
def test_the_order_of_heads_does_not_matter(masks: Tensor, seed: int) -> None:
    target = masks[:, -1].roll(1, dims=-2)
    order = torch.randperm(masks.shape[1], generator=torch.Generator().manual_seed(seed))
    iou, head = best_head_iou(masks, target)
    shuffled_iou, shuffled_head = best_head_iou(masks[:, order], target)
    assert torch.equal(iou, shuffled_iou)
    images = torch.arange(len(masks))
    for ious, heads, chosen in [(iou, head, masks), (shuffled_iou, shuffled_head, masks[:, order])]:
        assert torch.equal(mask_iou(chosen[images, heads], target), ious)
    assert torch.equal(iou, mask_iou(masks, target[:, None]).amax(dim=1))


def test_each_class_of_an_image_has_its_own_best_head() -> None:
    heads = torch.zeros(3, 2, 4).bool()
    heads[0, :, :1] = heads[1, :, 2:] = heads[2, 0] = True
    classes = torch.zeros(2, 2, 4).bool()
    classes[0, :, 2:] = True  # head 1 exactly
    classes[1, 0, :3] = True  # 3 of the 4 of head 2
    iou, head = best_head_iou(heads, classes)
    assert iou.tolist() == [1.0, 0.75]
    assert head.tolist() == [1, 2]


def test_mean_iou_averages_within_images_then_over_them() -> None:
    ious, images, classes = (
        torch.tensor([0.5, 0.1, 0.3, 0.8]),
        torch.tensor([7, 7, 7, 2]),
        torch.tensor([0, 1, 2, 0]),
    )
    assert mean_iou(ious, images) == pytest.approx(mean([mean([0.5, 0.1, 0.3]), 0.8]))
    assert mean_iou(ious, classes) == pytest.approx(mean([mean([0.5, 0.8]), 0.1, 0.3]))
    assert group_means(ious, classes) == pytest.approx({0: 0.65, 1: 0.1, 2: 0.3})
    assert list(group_means(ious, images)) == [2, 7]


def test_mean_iou_is_equation_14_written_out() -> None:
    """Random masks and label maps against the sums as the paper has them."""
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(5, 3, 8, 8, generator=generator) > 0.4
    labels = torch.randint(0, 4, (5, 2, 2), generator=generator)
    labels = labels.repeat_interleave(4, dim=1).repeat_interleave(4, dim=2)
    per_image, ious, images = [], [], []
    for index in range(5):
        present = labels[index].unique()
        best = [max(iou_of_sets(mask, labels[index] == c) for mask in masks[index]) for c in present]
        per_image.append(mean(best))
        ious.append(best_head_iou(masks[index], labels[index] == present[:, None, None])[0])
        images.append(torch.full((len(present),), index))
    assert len({len(found) for found in ious}) > 1  # else the grouping would not matter
    assert mean_iou(torch.cat(ious), torch.cat(images)) == pytest.approx(mean(per_image))


@pytest.mark.parametrize(
    ("masks", "target", "says"),
    [
        (torch.ones(2, 4, 4), torch.ones(4, 4).bool(), "masks: expected bool"),
        (torch.ones(2, 4, 4).bool(), torch.ones(4, 4, dtype=torch.uint8), "target: expected bool"),
        (torch.ones(2, 4, 4).bool(), torch.ones(1, 4).bool(), "do not fit"),
        (torch.ones(2, 4, 4).bool(), torch.ones(3, 4, 4).bool(), "do not fit"),
        (torch.ones(4).bool(), torch.ones(4).bool(), "height, width"),
    ],
)
def test_masks_that_do_not_fit_are_refused(masks: Tensor, target: Tensor, says: str) -> None:
    with pytest.raises(InputError, match=says):
        mask_iou(masks, target)


def test_valid_must_fit_too() -> None:
    masks = torch.ones(2, 4, 4).bool()
    with pytest.raises(InputError, match="valid: expected bool"):
        mask_iou(masks, masks, valid=torch.ones(4, 4))
    with pytest.raises(InputError, match="do not fit"):
        best_head_iou(masks, masks[0], valid=torch.ones(5, 4).bool())


def test_a_target_without_pixels_is_refused() -> None:
    masks = torch.ones(2, 3, 4, 4).bool()
    target = torch.ones(2, 4, 4).bool()
    target[1, :, 1:] = False
    valid = torch.ones(4, 4).bool()
    valid[:, 0] = False
    best_head_iou(masks, target)
    with pytest.raises(InputError, match=r"1 of 2 targets .* \[\[1\]\]"):
        best_head_iou(masks, target, valid=valid)


def test_no_heads_are_refused() -> None:
    for masks in (torch.ones(4, 4).bool(), torch.ones(0, 4, 4).bool()):
        with pytest.raises(InputError, match="heads"):
            best_head_iou(masks, torch.ones(4, 4).bool())


@pytest.mark.parametrize(
    ("ious", "groups"),
    [
        (torch.tensor([]), torch.tensor([], dtype=torch.int64)),
        (torch.tensor([0.5, 0.5]), torch.tensor([1])),
        (torch.tensor([[0.5]]), torch.tensor([[1]])),
        (torch.tensor([0.5, float("nan")]), torch.tensor([0, 1])),
        (torch.tensor([0.5, 50.0]), torch.tensor([0, 1])),
        (torch.tensor([0.5, 0.5]), torch.tensor([0.0, 1.0])),
    ],
)
def test_ious_that_are_none_are_refused(ious: Tensor, groups: Tensor) -> None:
    with pytest.raises(InputError):
        mean_iou(ious, groups)
