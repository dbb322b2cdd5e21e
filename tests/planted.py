"""Features of patches in which objects are planted."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor


def planted(seed: int, grid: tuple[int, int], noise: float, objects: int = 3, dim: int = 16) -> Tensor:
    """Features of rectangles on a background: Gaussian around a direction each."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.zeros(grid, dtype=torch.int64)
    for index in range(1, objects + 1):
        top, left = (int(torch.randint(0, side, (), generator=generator)) for side in grid)
        label[top : top + max(2, grid[0] // 3), left : left + max(2, grid[1] // 3)] = index
    directions = torch.randn(objects + 1, dim, generator=generator)
    return directions[label.flatten()] + noise * torch.randn(grid[0] * grid[1], dim, generator=generator)


@st.composite
def scenes(draw: st.DrawFn) -> tuple[Tensor, tuple[int, int]]:
    """Features, planted or of pure noise, on a grid."""
    grid = (draw(st.integers(1, 13)), draw(st.integers(2, 13)))
    seed, dim = draw(st.integers(0, 2**31)), draw(st.sampled_from([2, 8, 32]))
    return planted(seed, grid, draw(st.sampled_from([0.1, 0.5, 1.0, 10.0])), draw(st.integers(0, 4)), dim), grid


thresholds = st.sampled_from([0.0, 0.15, 0.4, 0.8])
