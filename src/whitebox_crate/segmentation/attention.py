"""Turns maps on the patch grid into masks, and brings both to the size of an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError, UnknownNameError, check_kind, is_whole

MaskRule: TypeAlias = Literal["mass", "entries", "mean"]
UpsampleMode: TypeAlias = Literal["nearest", "bilinear"]


def attention_masks(maps: Tensor, keep: float = 0.6, rule: MaskRule = "mass") -> Tensor:
    """Marks the patches with the most attention. Each map is cut alone; its scale does not matter.

    - "mass": the fewest patches that hold at least `keep` of the map's sum. This is DINO's rule: sort
      ascending, divide by the sum, cumulate, keep entries whose cumulated mass is strictly greater than 1 - keep.
    - "entries": the `keep` share of the patches, rounded to a whole number (halves up), at least one. This is
      the rule in arXiv 2308.16271, appendix B.3 (the top 60% of entries).
    - "mean": the patches strictly above the map's mean; `keep` is ignored. A constant map marks none.

    If patches of equal value straddle the cut, the later ones in row-major order are kept.

    Args:
        maps: (..., grid_h, grid_w), float, finite, not negative, no map all zero. float16 and bfloat16 are
            cumulated in float32.
        keep: The share to keep, in (0, 1].
        rule: "mass", "entries" or "mean".

    Returns:
        bool, the shape of `maps`.

    Raises:
        InputError: If `keep` or the maps are not as above.
        UnknownNameError: If the rule does not exist.

    Example:
        >>> attention_masks(torch.tensor([[0.5, 0.2], [0.2, 0.1]]), rule="mean")
        tensor([[ True, False],
                [False, False]])
    """
    if rule not in get_args(MaskRule):
        raise UnknownNameError.of("rule", rule, get_args(MaskRule))
    check_kind("keep", keep, (int, float), "give a share in (0, 1]")
    if not 0 < keep <= 1:
        raise InputError(f"keep must be a share in (0, 1], not {keep!r}")
    _check_maps(maps)
    values = maps.flatten(-2).to(torch.promote_types(maps.dtype, torch.float32))
    if rule == "mean":
        # From the smallest value up, so that rounding of the mean cannot mark patches of a constant map.
        above_least = values - values.amin(dim=-1, keepdim=True)
        return (above_least > above_least.mean(dim=-1, keepdim=True)).reshape(maps.shape)

    ascending, order = values.sort(dim=-1, stable=True)
    if rule == "mass":
        kept = (ascending / ascending.sum(dim=-1, keepdim=True)).cumsum(dim=-1) > 1 - keep
    else:
        patches = values.shape[-1]
        count = max(1, int(keep * patches + 0.5))
        kept = (torch.arange(patches, device=maps.device) >= patches - count).expand_as(ascending)
    return torch.zeros_like(kept).scatter(-1, order, kept).reshape(maps.shape)


def rule_and_keep(rule: MaskRule | None, keep: float | None) -> tuple[MaskRule, float]:
    """The arguments of `attention_masks` if some are left out: a given `keep` means "mass", else the rule is "mean"."""
    return rule or ("mean" if keep is None else "mass"), 0.6 if keep is None else keep


def upsample(maps: Tensor, size: tuple[int, int], mode: UpsampleMode = "nearest") -> Tensor:
    """Brings maps or masks from the patch grid to the size of an image.

    Args:
        maps: (..., grid_h, grid_w), any dtype for "nearest", float for "bilinear".
        size: (height, width), pixels. Where it is a multiple of the grid, "nearest" paints each patch whole.
        mode: "nearest" takes the patch around a pixel's centre; "bilinear" blends the four nearest patch centres.

    Returns:
        (..., height, width), the dtype of `maps`.

    Raises:
        InputError: If `maps` or `size` are not as above.
        UnknownNameError: If the mode does not exist.

    Example:
        >>> upsample(torch.tensor([[True, False]]), (2, 4)).int()
        tensor([[1, 1, 0, 0],
                [1, 1, 0, 0]], dtype=torch.int32)
    """
    if mode not in get_args(UpsampleMode):
        raise UnknownNameError.of("mode", mode, get_args(UpsampleMode))
    check_kind("maps", maps, Tensor, "torch.as_tensor makes a tensor of an array")
    check_kind("size", size, Sequence, "it is (height, width) in pixels")
    if maps.ndim < 2 or maps.numel() == 0:
        raise InputError(f"expected maps of shape (..., grid_h, grid_w), got {tuple(maps.shape)}")
    if len(size) != 2 or any(not is_whole(side) or side < 1 for side in size):
        raise InputError(f"size must be (height, width) in pixels, both at least 1, not {size!r}")
    height, width = map(int, size)
    if mode == "nearest":
        rows, columns = (
            # Whole-number arithmetic, because rounded scale factors can be off by a pixel.
            (2 * torch.arange(pixels, device=maps.device) + 1) * patches // (2 * pixels)
            for pixels, patches in zip((height, width), maps.shape[-2:], strict=True)
        )
        return maps[..., rows[:, None], columns]
    if not maps.is_floating_point():
        raise InputError(f"bilinear up-sampling needs float maps, got {maps.dtype}; use mode='nearest'")
    flat = maps.reshape(1, -1, *maps.shape[-2:])
    blended = F.interpolate(flat, (height, width), mode="bilinear", align_corners=False)
    return blended.reshape(*maps.shape[:-2], height, width)


def _check_maps(maps: Tensor) -> None:
    check_kind("maps", maps, Tensor, "torch.as_tensor makes a tensor of an array")
    if maps.ndim < 2 or maps.numel() == 0 or not maps.is_floating_point():
        raise InputError(f"expected float maps of shape (..., grid_h, grid_w), got {maps.dtype} of {tuple(maps.shape)}")
    if not maps.isfinite().all():
        raise InputError(
            f"{int((~maps.isfinite()).sum())} values of the maps are NaN or infinite; check the images behind them"
        )
    if (maps < 0).any():
        raise InputError(
            f"attention maps must not be negative, but the smallest value is {float(maps.min())}; check the maps"
        )
    empty = maps.flatten(-2).amax(dim=-1) == 0
    if empty.any():
        raise InputError(f"{int(empty.sum())} of {empty.numel()} maps are zero everywhere; leave them out")
