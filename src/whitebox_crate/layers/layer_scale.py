"""LayerScale: a learned scale of what a residual branch adds."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import InputError, is_finite


class LayerScale(nn.Module):
    """Each channel of a residual branch times a learned number (arXiv 2103.17239, section 2; timm's names).

    Args:
        dim: Width of a token.
        init_values: What all numbers begin with.

    Shape:
        - Input: (..., dim), any float dtype.
        - Output: as the input.

    Raises:
        InputError: If `init_values` is no finite number.
    """

    def __init__(self, dim: int, init_values: float = 1e-5) -> None:
        super().__init__()
        if not is_finite(init_values):
            raise InputError(f"init_values of LayerScale is a finite number, as 1e-5, not {init_values!r:.50}")
        self.gamma = nn.Parameter(torch.full((dim,), float(init_values)))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma
