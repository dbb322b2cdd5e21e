"""MLP: the two-layer perceptron of ViT, for comparison with CRATE's ISTA."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class MLP(nn.Module):
    """Linear, exact GELU, Linear (arXiv 2010.11929, Eq. 3; timm's names).

    Args:
        dim: Width of a token.
        hidden_dim: Width of the hidden layer.
        drop: Dropout rate of the hidden layer and of the output.

    Shape:
        - Input: (..., dim), any float dtype.
        - Output: same shape as the input.
    """

    def __init__(self, dim: int, hidden_dim: int, drop: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.drop(self.fc2(self.drop(F.gelu(self.fc1(x)))))
        return out
