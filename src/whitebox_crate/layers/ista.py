"""ISTA: one proximal gradient step on sparse coding in a learned dictionary, the second half of a CRATE layer."""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UnknownNameError

Threshold = Literal["relu", "soft"]


class ISTA(nn.Module):
    """Codes tokens sparsely in a complete dictionary D (arXiv 2308.16271, Eq. 7).

    `ISTA(x) = ReLU(x + eta D^T (x - D x) - eta lambda)`: one step from x on `lambda |z|_1 + |x - D z|^2 / 2` over
    z >= 0. There is no residual around it. With `threshold="soft"` the codes may be negative and the proximal
    operator is the soft threshold (the ablation CRATE-sth of arXiv 2308.16271).

    Args:
        dim: Width of a token; D is dim x dim.
        step_size: eta.
        sparsity: lambda, the weight of the l1 norm.
        threshold: "relu" for non-negative codes, "soft" for signed ones.

    Shape:
        - Input: (..., dim), any float dtype.
        - Output: as the input.

    Raises:
        UnknownNameError: If `threshold` is neither of the two.
    """

    def __init__(self, dim: int, step_size: float = 0.1, sparsity: float = 0.1, threshold: Threshold = "relu") -> None:
        super().__init__()
        if threshold not in get_args(Threshold):
            raise UnknownNameError.of("threshold", threshold, get_args(Threshold))
        self.step_size = step_size
        self.sparsity = sparsity
        self.threshold = threshold
        self.dictionary = nn.Parameter(torch.empty(dim, dim))
        nn.init.kaiming_uniform_(self.dictionary)

    def forward(self, x: Tensor) -> Tensor:
        residual = x - F.linear(x, self.dictionary)  # x - D x: tokens are rows
        # D^T residual as `residual @ D`; D enters two products, not the three of D^T x - D^T D x.
        code = x + self.step_size * (residual @ self.dictionary)
        if self.threshold == "soft":
            return F.softshrink(code, self.step_size * self.sparsity)
        return F.relu(code - self.step_size * self.sparsity)

    def extra_repr(self) -> str:
        """The constants, as they stand in the equation."""
        dim = self.dictionary.shape[0]
        return f"{dim}, eta={self.step_size}, lambda={self.sparsity}, threshold={self.threshold!r}"
