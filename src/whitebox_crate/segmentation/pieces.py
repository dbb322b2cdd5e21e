"""Pieces of a mask: pixels that can be reached from each other, going up, down, left and right."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..errors import InputError, check_kind, is_finite

Integers: TypeAlias = npt.NDArray[np.int64]


def mask_pieces(mask: Tensor) -> Tensor:
    """Numbers the pieces of a mask.

    The mask is read as runs, stretches of a row. Runs of neighbouring rows that overlap are of one piece.

    Args:
        mask: bool (height, width).

    Returns:
        int64 (height, width): 0 outside the mask, and from 1 the number of each piece, in the order of their first
        pixels, row by row.

    Raises:
        InputError: If the mask is not as above.

    Example:
        >>> mask_pieces(torch.tensor([[1, 0, 1], [1, 0, 0]]).bool())
        tensor([[1, 0, 2],
                [1, 0, 0]])
    """
    starts, ends, pieces = _runs(mask)
    return _drawn(mask, starts, ends, pieces)


def connected_component(mask: Tensor, seed: int) -> Tensor:
    """The piece of a mask that the seed is in.

    Args:
        mask: bool (height, width).
        seed: Index into the flattened mask.

    Returns:
        bool (height, width); empty if the seed is not in the mask.

    Raises:
        InputError: If the mask is not as above, or the seed is not in its range.
    """
    pieces = mask_pieces(mask)
    if not 0 <= seed < mask.numel():
        raise InputError(f"the seed must be an index in [0, {mask.numel()}), not {seed}")
    return mask & (pieces == pieces.flatten()[seed])


def large_pieces(mask: Tensor, share: float = 0.25) -> Tensor:
    """A mask without its small pieces.

    Args:
        mask: bool (height, width).
        share: Size of the smallest piece that stays, as a share of the largest.

    Returns:
        bool (height, width).

    Raises:
        InputError: If the mask is not as above, or the share is not in [0, 1].
    """
    if not (is_finite(share) and 0 <= share <= 1):
        raise InputError(f"share must be in [0, 1], not {share!r}")
    starts, ends, pieces = _runs(mask)
    sizes = np.bincount(pieces, ends - starts, minlength=1)  # by piece; the runs are enough, no pixel is counted
    large = sizes[pieces] >= share * sizes.max()
    return _drawn(mask, starts[large], ends[large], np.ones(large.sum(), dtype=np.int8)).bool()


def _runs(mask: Tensor) -> tuple[Integers, Integers, Integers]:
    """Where each run starts and ends, and the number of its piece; (runs,) each. Indices are into rows of width + 1."""
    check_kind("a mask", mask, Tensor, "give a bool tensor (height, width), for example torch.from_numpy(mask)")
    if mask.ndim != 2 or mask.dtype != torch.bool:
        raise InputError(f"expected a bool mask (height, width), got {mask.dtype} of shape {tuple(mask.shape)}")
    steps = np.diff(mask.cpu().numpy().astype(np.int8), prepend=0, append=0)  # (height, width + 1): no two runs touch
    starts, ends = (np.flatnonzero(steps == step) for step in (1, -1))
    return starts, ends, _joined(starts, ends, mask.shape[1] + 1)


def _drawn(mask: Tensor, starts: Integers, ends: Integers, values: npt.NDArray[Any]) -> Tensor:
    """The runs as a picture of the size of the mask, each in its value, on the mask's device."""
    height, width = mask.shape
    changes = np.zeros(height * (width + 1), dtype=values.dtype)
    changes[starts], changes[ends] = values, -values
    drawn = changes.cumsum(dtype=values.dtype).reshape(height, width + 1)[:, :width]
    return torch.from_numpy(drawn.copy()).to(mask.device)


def _joined(starts: Integers, ends: Integers, row: int) -> Integers:
    """The number of the piece of each run, from 1; (runs,). A pixel's index plus `row` is that of the pixel below."""
    first = np.searchsorted(ends, starts + row, side="right")  # the runs below that overlap: from this one
    last = np.searchsorted(starts, ends + row, side="left")  # to before this one
    root = list(range(len(starts)))

    def top(run: int) -> int:
        while root[run] != run:
            root[run] = run = root[root[run]]
        return run

    for run, (low, high) in enumerate(zip(first.tolist(), last.tolist(), strict=True)):
        for below in range(low, high):
            one, other = sorted((top(run), top(below)))
            root[other] = one  # so the first run of a piece is its top
    tops = np.array([top(run) for run in range(len(root))], dtype=np.int64)
    return np.unique(tops, return_inverse=True)[1].reshape(-1) + 1
