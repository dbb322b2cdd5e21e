"""ISTA: one proximal gradient step of sparse coding in a learned dictionary, the second half of a CRATE layer."""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._hooks import constant_of
from ..errors import UnknownNameError

Threshold = Literal["relu", "soft"]


def known_threshold(threshold: Threshold) -> Threshold:
    if threshold not in get_args(Threshold):
        raise UnknownNameError.of("threshold", threshold, get_args(Threshold))
    return threshold


class ISTA(nn.Module):
    """Codes tokens sparsely in a complete dictionary D (arXiv 2308.16271, Eq. 7).

    `ISTA(x) = ReLU(x + eta D^T (x - D x) - eta lambda)`: one step from x on `lambda |z|_1 + |x - D z|^2 / 2` over
    z >= 0. It has no residual connection. With `threshold="soft"` the codes may be negative, and the proximal operator
    is the soft threshold (the ablation CRATE-sth of arXiv 2308.16271).

    Args:
        dim: Width of a token; D is dim x dim.
        step_size: eta.
        sparsity: lambda, the weight of the l1 norm.
        threshold: "relu" for non-negative codes, "soft" for signed ones.

    Shape:
        - Input: (..., dim), any float dtype.
        - Output: same shape as the input.

    Raises:
        UnknownNameError: If `threshold` is another word.

    Example:
        >>> codes = ISTA(dim=128, step_size=0.1, sparsity=0.1)(torch.randn(2, 257, 128))
        >>> bool((codes >= 0).all())
        True
    """

    def __init__(self, dim: int, step_size: float = 0.1, sparsity: float = 0.1, threshold: Threshold = "relu") -> None:
        super().__init__()
        self.step_size = step_size
        self.sparsity = sparsity
        self.threshold = known_threshold(threshold)
        self.dictionary = nn.Parameter(torch.empty(dim, dim))
        nn.init.kaiming_uniform_(self.dictionary)

    def forward(self, x: Tensor) -> Tensor:
        code = self._step(x)
        shrinkage = constant_of(self, "step_size") * constant_of(self, "sparsity")
        # In place, since nothing else holds the code.
        return F.softshrink(code, shrinkage) if self.threshold == "soft" else code.sub_(shrinkage).relu_()

    def _step(self, x: Tensor) -> Tensor:
        """x + eta D^T (x - D x), the step before the threshold, as a new tensor."""
        step_size = constant_of(self, "step_size")
        if self.training and x.numel() > self.dictionary.numel():
            # With more tokens than channels, forming eta (D^T - D^T D) pays, forward and backward. In evaluation all
            # batches take the same form, so that no output depends on the rest of its batch.
            return x + F.linear(x, step_size * (self.dictionary.T - self.dictionary.T @ self.dictionary))
        residual = x - F.linear(x, self.dictionary)  # x - D x: tokens are rows
        # D^T residual as `residual @ D`; D enters two products, not the three of D^T x - D^T D x.
        return x + (residual @ self.dictionary).mul_(step_size)

    @torch.no_grad()
    def affine(self) -> Tensor:
        """The map before the threshold as one matrix: A = I + eta (D^T - D^T D), so that ISTA(x) = shrink(A x).

        Returns:
            (dim, dim), in double precision, on the CPU.
        """
        # On the CPU, because some devices lack double precision.
        exact = self.dictionary if self.dictionary.is_meta else self.dictionary.cpu()
        exact = exact.double()
        identity = torch.eye(len(exact), dtype=exact.dtype, device=exact.device)
        return identity + constant_of(self, "step_size") * (exact.T - exact.T @ exact)

    def extra_repr(self) -> str:
        """The constants, as they stand in the equation."""
        dim = self.dictionary.shape[0]
        return f"{dim}, eta={self.step_size}, lambda={self.sparsity}, threshold={self.threshold!r}"


class FoldedISTA(nn.Module):
    """ISTA after LayerNorm as one product and a threshold. `whitebox_crate.fold_for_inference` makes it.

    It is `shrink(W x + b)`, where x is normed but not scaled or shifted. W is `ISTA.affine()` times the norm's scale. b
    holds the norm's shift and, with "relu", eta lambda.

    Args:
        dim: Width of a token.
        shrinkage: eta lambda.
        threshold: "relu" or "soft".
        device: Device of the weights; they have no values yet.

    Raises:
        UnknownNameError: If `threshold` is another word.

    Shape:
        - Input: (..., dim), any float dtype.
        - Output: same shape as the input.
    """

    def __init__(self, dim: int, shrinkage: float, threshold: Threshold, device: str | None = None) -> None:
        super().__init__()
        self.shrinkage = shrinkage
        self.threshold = known_threshold(threshold)
        self.weight = nn.Parameter(torch.empty(dim, dim, device=device))
        self.bias = nn.Parameter(torch.empty(dim, device=device))

    def forward(self, x: Tensor) -> Tensor:
        code = F.linear(x, self.weight, self.bias)
        return F.softshrink(code, self.shrinkage) if self.threshold == "soft" else code.relu_()

    def extra_repr(self) -> str:
        """The sizes and the threshold."""
        return f"{len(self.weight)}, eta lambda={self.shrinkage}, threshold={self.threshold!r}"
