"""ODL: overcomplete dictionary learning, the sparse coding of CRATE-alpha with more atoms than channels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._hooks import constant_of
from ..errors import InputError


class ODL(nn.Module):
    """Codes tokens sparsely in an overcomplete dictionary D, then decodes them by another (arXiv 2405.20299).

    The code is two proximal gradient steps from zero on `|x - D a|^2 / 2 + lambda |a|_1` over a >= 0:
    `a1 = ReLU(eta D^T x - eta lambda)`, `a2 = ReLU(a1 + eta D^T (x - D a1) - eta lambda)`. The output is `D1 a2`. The
    decoder D1 is learned separately from D.

    Args:
        dim: Width of a token.
        expansion: Atoms per channel of a token; D and D1 are dim x (expansion * dim).
        step_size: eta.
        sparsity: lambda, the weight of the l1 norm.

    Shape:
        - Input: (..., dim), any float dtype.
        - Output: same shape as the input.

    Raises:
        InputError: If `expansion` is not positive.

    Example:
        >>> odl = ODL(dim=128, expansion=4)
        >>> odl.encode(torch.rand(2, 257, 128)).shape
        torch.Size([2, 257, 512])
    """

    def __init__(self, dim: int, expansion: int = 4, step_size: float = 0.1, sparsity: float = 0.1) -> None:
        super().__init__()
        if expansion < 1:
            raise InputError(f"expansion must be at least 1, not {expansion}")
        self.step_size = step_size
        self.sparsity = sparsity
        self.dictionary = nn.Parameter(torch.empty(dim, expansion * dim))
        self.decoder = nn.Parameter(torch.empty(dim, expansion * dim))
        for matrix in (self.dictionary, self.decoder):
            # Uniform within sqrt(6 / dim), as in the JAX original (github.com/UCSC-VLAA/CRATE-alpha, models/crate.py).
            nn.init.kaiming_uniform_(matrix, mode="fan_out")

    def encode(self, x: Tensor) -> Tensor:
        """The sparse code a2 of each token.

        Args:
            x: (..., dim).

        Returns:
            (..., expansion * dim), same dtype, not negative.
        """
        step_size = constant_of(self, "step_size")
        shrink = step_size * constant_of(self, "sparsity")
        code = F.relu(step_size * (x @ self.dictionary) - shrink)  # D^T x as `x @ D`: tokens are rows
        residual = x - F.linear(code, self.dictionary)
        return F.relu(code + step_size * (residual @ self.dictionary) - shrink)

    def decode(self, code: Tensor) -> Tensor:
        """Decodes codes to tokens.

        Args:
            code: (..., expansion * dim).

        Returns:
            (..., dim), same dtype.
        """
        return F.linear(code, self.decoder)

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))

    def extra_repr(self) -> str:
        """The constants, as they stand in the equation."""
        dim, atoms = self.dictionary.shape
        return f"{dim}, atoms={atoms}, eta={self.step_size}, lambda={self.sparsity}"
