"""LayerScale: a learned scale for the output of a residual branch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import InputError, is_finite


class LayerScale(nn.Module):
    """Multiplies each channel of a residual branch by a learned number (arXiv 2103.17239, section 2; timm's names).

    Args:
        dim: Width of a token.
        init_values: Initial value of all numbers.

    Shape:
        - Input: (..., dim), any float dtype.
        - Output: same shape as the input.

    Raises:
        InputError: If `init_values` is not a finite number.
    """

    def __init__(self, dim: int, init_values: float = 1e-5) -> None:
        super().__init__()
        if not is_finite(init_values):
            raise InputError(f"init_values of LayerScale must be a finite number such as 1e-5, not {init_values!r:.50}")
        self.gamma = nn.Parameter(torch.full((dim,), float(init_values)))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma
