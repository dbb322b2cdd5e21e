"""Encoding: masks as run lengths for COCO's JSON, without COCO's library."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import InputError


def run_lengths(mask: Tensor) -> dict[str, Any]:
    """The lengths of runs of pixels outside, inside, outside, ..., down the columns from the left.

    Args:
        mask: bool (height, width).

    Returns:
        {"size": [height, width], "counts": [...]}, which COCO calls an uncompressed RLE. The first count is for
        pixels outside, and may be 0.

    Raises:
        InputError: If the mask is not as above.
    """
    if mask.ndim != 2 or mask.dtype != torch.bool:
        raise InputError(f"expected a bool mask (height, width), got {mask.dtype} of shape {tuple(mask.shape)}")
    pixels = torch.cat([torch.zeros(1, dtype=torch.bool), mask.cpu().T.flatten()])  # starts outside
    changes = (pixels[1:] != pixels[:-1]).nonzero().flatten()
    bounds = torch.cat([torch.zeros(1, dtype=torch.int64), changes, torch.tensor([mask.numel()])])
    return {"size": list(mask.shape), "counts": bounds.diff().tolist()}
