"""Scores of masks: intersection over union, and the paper's mIoU."""

from __future__ import annotations

from statistics import fmean

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError


def mask_iou(masks: Tensor, target: Tensor, *, valid: Tensor | None = None) -> Tensor:
    """Intersection over union: 1 for equal masks (also for two empty ones), 0 for masks that share no pixel.

    Args:
        masks: (..., height, width), bool.
        target: (..., height, width), bool. Leading dimensions of all arguments broadcast.
        valid: (..., height, width), bool: the pixels that count. False where the truth is unknown, for example where a
            label of Pascal VOC is 255.

    Returns:
        (...), float, in [0, 1].

    Raises:
        InputError: If an argument is not bool, or the shapes do not fit.

    Example:
        >>> mask, target = torch.tensor([[True, True]]), torch.tensor([[True, False]])
        >>> mask_iou(mask, target)
        tensor(0.5000)
    """
    for name, tensor in {"masks": masks, "target": target, "valid": valid}.items():
        _check_mask(name, tensor)
    _check_shapes(*(tensor.shape for tensor in (masks, target, valid) if tensor is not None))
    if valid is not None:
        masks, target = masks & valid, target & valid
    intersection = (masks & target).sum(dim=(-2, -1))
    union = masks.sum(dim=(-2, -1)) + target.sum(dim=(-2, -1)) - intersection
    return torch.where(union == 0, 1.0, intersection / union.clamp(min=1))


def best_head_iou(masks: Tensor, target: Tensor, *, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The head that fits an object best, and how well (arXiv 2308.16271, appendix B.3, equation 13).

    For the M classes of one image, give `target` as (M, height, width): each class has its own best head.

    Args:
        masks: (..., heads, height, width), bool.
        target: (..., height, width), bool: one object or class each. Leading dimensions broadcast.
        valid: (..., height, width), bool: the pixels that count.

    Returns:
        (iou, head): float and int64, both (...); the first of equally good heads.

    Raises:
        InputError: If an argument is not bool, the shapes do not fit, or a target is empty. (An empty target has
            nothing to find, and would only dilute the mean.)

    Example:
        >>> heads = torch.tensor([[[True, True]], [[True, False]]])
        >>> best_head_iou(heads, torch.tensor([[True, False]]))
        (tensor(1.), tensor(1))
    """
    _check_mask("target", target)
    _check_mask("valid", valid)
    if masks.ndim < 3 or masks.shape[-3] == 0:
        raise InputError(f"expected masks of shape (..., heads, height, width), got {tuple(masks.shape)}")
    ious = mask_iou(masks, target.unsqueeze(-3), valid=None if valid is None else valid.unsqueeze(-3))
    present = (target if valid is None else target & valid).flatten(-2).any(dim=-1)
    if not present.all():
        raise InputError(
            f"{int((~present).sum())} of {present.numel()} targets have no valid pixel set, at "
            f"{(~present).nonzero().tolist()[:10]}; leave out objects that are not in the image"
        )
    best, head = ious.max(dim=-1)
    return best, head


def group_means(ious: Tensor, groups: Tensor) -> dict[int, float]:
    """The mean IoU of each group, for example of each class or of each image.

    Args:
        ious: (n,), float, in [0, 1].
        groups: (n,), integer: the group of each value.

    Returns:
        Mean by group, in ascending order of group.

    Raises:
        InputError: If there are no values, the shapes differ, or a value is not in [0, 1].
    """
    if ious.ndim != 1 or ious.shape != groups.shape or len(ious) == 0:
        raise InputError(
            f"expected ious and groups of one shape (n,), n at least 1, got {tuple(ious.shape)} and "
            f"{tuple(groups.shape)}"
        )
    if groups.is_floating_point():
        raise InputError(f"groups must be whole numbers, not {groups.dtype}")
    if not ((ious >= 0) & (ious <= 1)).all():
        raise InputError("an IoU must be in [0, 1], but some values are not, or are NaN; check how they were computed")
    members: dict[int, list[float]] = {}
    for group, iou in zip(groups.tolist(), ious.tolist(), strict=True):
        members.setdefault(group, []).append(iou)
    return {group: fmean(values) for group, values in sorted(members.items())}


def mean_iou(ious: Tensor, groups: Tensor) -> float:
    """Mean over groups of the mean IoU in each.

    This is the paper's mIoU (arXiv 2308.16271, appendix B.3) if `groups` is the index of the image. Equation 13 is
    `best_head_iou` for one semantic class of an image. Equation 14 is the mean over the M classes of that image, which
    is then averaged over all images. The paper's classes partition the patches, so taken literally the background is
    one of them. To measure only objects, give only objects, and say so beside the number.

    If `groups` is the class instead, every class has the same weight, however many images it is in.

    Args:
        ious: (n,), float, in [0, 1]: one for each pair of an image and a class in it.
        groups: (n,), integer: the image (the paper) or the class of each pair.

    Raises:
        InputError: If there are no values, the shapes differ, or a value is not in [0, 1].

    Example:
        >>> mean_iou(torch.tensor([0.25, 0.5, 0.625]), groups=torch.tensor([0, 0, 1]))
        0.5
    """
    return fmean(group_means(ious, groups).values())


def _check_mask(name: str, tensor: Tensor | None) -> None:
    if tensor is not None and (tensor.dtype != torch.bool or tensor.ndim < 2):
        raise InputError(
            f"{name}: expected bool of shape (..., height, width), got {tensor.dtype} of shape "
            f"{tuple(tensor.shape)}; compare with a threshold first"
        )


def _check_shapes(*shapes: torch.Size) -> None:
    try:
        np.broadcast_shapes(*shapes)
    except ValueError:
        fit = False
    else:
        fit = len({shape[-2:] for shape in shapes}) == 1
    if not fit:
        raise InputError(
            f"masks, target and valid of shapes {', '.join(str(tuple(shape)) for shape in shapes)} do not "
            "fit: height and width must agree (see upsample), and the dimensions before them broadcast"
        )
