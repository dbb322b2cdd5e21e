"""Pieces of a mask: pixels that can be reached from each other, going up, down, left and right."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..errors import InputError


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
    if mask.ndim != 2 or mask.dtype != torch.bool:
        raise InputError(f"expected a bool mask (height, width), got {mask.dtype} of shape {tuple(mask.shape)}")
    height, width = mask.shape
    steps = np.diff(mask.cpu().numpy().astype(np.int8), prepend=0, append=0)  # (height, width + 1)
    starts, ends = (np.flatnonzero(steps == step) for step in (1, -1))  # in rows of width + 1, so no two runs touch
    piece = _joined(starts, ends, width + 1)
    changes = np.zeros(height * (width + 1), dtype=np.int64)
    changes[starts], changes[ends] = piece, -piece
    return torch.from_numpy(changes.cumsum().reshape(height, width + 1)[:, :width].copy()).to(mask.device)


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
    if not 0 <= share <= 1:
        raise InputError(f"share must be in [0, 1], not {share}")
    pieces = mask_pieces(mask)
    sizes = pieces.flatten().bincount(minlength=1)
    sizes[0] = 0  # what is outside
    return (sizes >= share * sizes.amax())[pieces] & mask


def _joined(starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64], row: int) -> npt.NDArray[np.int64]:
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
