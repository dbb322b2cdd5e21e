"""How well maps find objects: pure functions of maps on a patch grid and of exact masks.

A mask comes to the grid as shares, the part of each patch that is object, so that all of this is exact for pixels:
an average precision or a peak of a map painted patch by patch is that of its patches weighed by their shares.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from statistics import fmean, stdev
from typing import Literal, TypeAlias, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from whitebox_crate.analysis.moments import student_t
from whitebox_crate.segmentation import attention_masks, mask_iou, upsample

Rule: TypeAlias = Literal["mean", "mass", "entries", "log", "best"]  # the last two are this study's: `ious`
RULES: tuple[Rule, ...] = get_args(Rule)
KEEP = 0.6
CENTRED_BOX = 0.6  # side of the box over the image's


def shares_of(masks: Tensor, grid: Sequence[int]) -> Tensor:
    """The part of each patch that is object: bool (..., height, width) to float (..., rows, columns)."""
    height, width = masks.shape[-2:]
    flat = masks.float().reshape(-1, 1, height, width)
    shares = F.avg_pool2d(flat, (height // grid[0], width // grid[1]))
    return shares.reshape(*masks.shape[:-2], *grid)


def _cuts(maps: Tensor, shares: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Maps cut above each of their scores in turn, from the largest down: three of (..., rows * columns).

    What object each next patch adds, how much object is above the cut, and how many patches are. Equal scores are one
    cut, so that nothing hangs on their order.
    """
    scores, weights = torch.broadcast_tensors(maps.flatten(-2), shares.flatten(-2).float())
    ordered, order = scores.sort(dim=-1, descending=True)
    gained = weights.gather(-1, order)
    last = torch.searchsorted(-ordered, -ordered, right=True) - 1  # of those with the same score
    return gained, gained.cumsum(-1).gather(-1, last), last + 1


def average_precision(maps: Tensor, shares: Tensor) -> Tensor:
    """Average precision of a map as a score for "this pixel is object"; it needs no threshold.

    The mean over the object's pixels of the precision among all pixels that score at least as much. A constant map has
    the object's share of the image, which is also what a random map tends to.

    Args:
        maps: (..., rows, columns), float.
        shares: (..., rows, columns), float in [0, 1] or bool, not all zero; leading dimensions broadcast.

    Returns:
        (...), float, in (0, 1].
    """
    gained, found, taken = _cuts(maps, shares)
    return (found / taken * gained).sum(-1) / gained.sum(-1)


def best_cut_iou(maps: Tensor, shares: Tensor) -> Tensor:
    """IoU at the best threshold of each map: its score if the right threshold were known.

    For arguments and result see `average_precision`.
    """
    gained, found, taken = _cuts(maps, shares)
    return (found / (taken + gained.sum(-1, keepdim=True) - found)).amax(-1)


def peak_inside(maps: Tensor, shares: Tensor) -> Tensor:
    """The pointing game: the share of object in the patch where the map peaks, float (...).

    It is the chance that a pixel drawn from that patch, or from all that share the peak, is of the object. For the
    arguments see `average_precision`.
    """
    peak = maps == maps.amax((-2, -1), keepdim=True)
    return (peak * shares).sum((-2, -1)) / peak.sum((-2, -1))


def ious(maps: Tensor, masks: Tensor, rule: Rule) -> Tensor:
    """IoU of the mask that a rule makes of maps (..., rows, columns), with masks (..., height, width).

    Beside the rules of `attention_masks`, "log" keeps what is above the mean of the logarithms, which a few high peaks
    do not raise, and "best" is `best_cut_iou`.
    """
    if rule == "best":
        return best_cut_iou(maps, shares_of(masks, maps.shape[-2:]))
    found = above_mean(maps.clamp_min(1e-30).log()) if rule == "log" else attention_masks(maps, KEEP, rule)
    height, width = masks.shape[-2:]
    return mask_iou(upsample(found, (height, width)), masks)


def above_mean(maps: Tensor) -> Tensor:
    """The patches above the mean of their map: bool, the shape of maps (..., rows, columns) of any sign."""
    return maps > maps.mean((-2, -1), keepdim=True)


def all_measures(maps: Tensor, masks: Tensor) -> dict[str, Tensor]:
    """Every measure by name, for maps (..., rows, columns) and masks (..., height, width)."""
    shares = shares_of(masks, maps.shape[-2:])
    return {
        **{f"iou_{rule}": ious(maps, masks, rule) for rule in RULES},
        "average_precision": average_precision(maps, shares),
        "pointing": peak_inside(maps, shares),
        "marked": above_mean(maps).float().mean((-2, -1)),  # the share of patches that the rule "mean" takes
    }


def trivial_maps(images: Tensor, grid: tuple[int, int], seed: int = 0) -> dict[str, Tensor]:
    """Baseline maps without a model, (batch, rows, columns) each, of images (batch, channels, height, width), 0 to 1.

    - "all ones": everything is object.
    - "centred box": the patches around the middle.
    - "random": uniform noise.
    - "local contrast": the deviation of the colours within a patch.
    - "colour distance": from the mean colour of a patch to that of the image.
    """
    count, (rows, columns) = len(images), grid
    down, across = (((torch.arange(n) + 0.5) / n - 0.5).abs() <= CENTRED_BOX / 2 for n in grid)
    box = (down[:, None] & across).float()
    patches = images.unflatten(-2, (rows, -1)).unflatten(-1, (columns, -1)).transpose(-3, -2)
    means = patches.mean((-2, -1))  # (batch, channels, rows, columns)
    return {
        "all ones": torch.ones(count, rows, columns),
        "centred box": box.expand(count, rows, columns),
        "random": torch.rand(count, rows, columns, generator=torch.Generator().manual_seed(seed)),
        "local contrast": patches.std((-2, -1)).mean(1),
        "colour distance": torch.linalg.vector_norm(means - means.mean((-2, -1), keepdim=True), dim=1),
    }


def interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Mean and half the width of its interval by Student's t; for one value the latter is nan."""
    if len(values) < 2:
        return fmean(values), float("nan")
    return fmean(values), student_t(confidence, len(values) - 1) * stdev(values) / sqrt(len(values))
