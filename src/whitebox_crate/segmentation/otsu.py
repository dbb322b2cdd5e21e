"""Otsu's cut: splits the values of a map into two groups (Otsu 1979)."""

from __future__ import annotations

import torch
from torch import Tensor


def otsu_cut(values: Tensor) -> float:
    """The cut with the largest variance between its two sides, half way between the values next to it.

    Args:
        values: Of any shape, finite. Computed in float64 on the CPU.

    Returns:
        The cut. If all values are equal, it is that value, so nothing is above it.
    """
    ascending = values.detach().flatten().to("cpu", torch.float64).sort().values
    count = len(ascending)
    if count < 2:
        return float(ascending[0])
    below = torch.arange(1, count, dtype=torch.float64)
    sums = ascending.cumsum(0)
    between = (sums[:-1] / below - (sums[-1] - sums[:-1]) / (count - below)).square() * below * (count - below)
    between[ascending[:-1] == ascending[1:]] = -1  # no cut goes between equal values
    at = int(between.argmax())
    return float((ascending[at] + ascending[at + 1]) / 2)
