"""Position embeddings: sines and cosines, fixed or projected; and resampling to another patch grid."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

from ..errors import InputError, UnknownNameError

Resampling = Literal["size", "scale"]


def sincos_pos_embed(grid: tuple[int, int], dim: int) -> Tensor:
    """A fixed position embedding: sines and cosines of the place in the grid, as in MAE (arXiv 2111.06377).

    The first half of the channels encodes the column, the second half the row. Each half has the sines of the place
    times `10000^(-k / (dim / 4))` for k = 0, 1, ..., dim / 4 - 1, then the cosines.

    Args:
        grid: (rows, columns).
        dim: Width of a token.

    Returns:
        (1, 1 + rows * columns, dim), default dtype, zero for [CLS]; computed in double precision.

    Raises:
        InputError: If `dim` is not divisible by 4.
    """
    if dim % 4:
        raise InputError(f"a sine-cosine position embedding needs a width that 4 divides, not {dim}")
    rows, columns = grid
    frequencies = 10000.0 ** (-4 * np.arange(dim // 4) / dim)

    def along(side: int) -> np.ndarray[Any, Any]:
        angles = np.outer(np.arange(side), frequencies)
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)

    patches = np.concatenate([np.tile(along(columns), (rows, 1)), np.repeat(along(rows), columns, axis=0)], axis=1)
    table = np.concatenate([np.zeros((1, dim)), patches])
    return torch.tensor(table[None], dtype=torch.get_default_dtype())


FREQUENCIES = 32  # sines and cosines of each coordinate


class FourierPosEmbed(nn.Module):
    """Positions for any patch grid: fixed sines and cosines, projected (XCiT, arXiv 2106.09681; ToST; timm's names).

    Row i of H, counted from 1, is at `y = 2 pi i / (H + 1e-6)`, and a column likewise. Entry j = 0, ..., 31 of a
    coordinate is `sin(y / t_j)` for even j and `cos(y / t_j)` for odd j, with `t_j = 10000^(2 floor(j / 2) / 32)`. The
    64 numbers of row and column go through a learned 1 x 1 convolution. Coordinates are relative to the grid, so
    another grid needs no resampling.

    Args:
        dim: Width of a token.

    Shape:
        - Input: The grid, (rows, columns).
        - Output: (1, rows * columns, dim), row by row, the dtype of the weights.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.token_projection = nn.Conv2d(2 * FREQUENCIES, dim, kernel_size=1)

    def forward(self, grid: tuple[int, int]) -> Tensor:
        weight = self.token_projection.weight
        rows, columns = (self._waves(side, weight) for side in grid)
        # (64, rows, columns)
        waves = torch.cat([rows[:, :, None].expand(-1, -1, grid[1]), columns[:, None].expand(-1, grid[0], -1)])
        projected: Tensor = self.token_projection(waves[None].to(weight.dtype))
        return rearrange(projected, "1 d h w -> 1 (h w) d")

    @staticmethod
    def _waves(side: int, like: Tensor) -> Tensor:
        """Sines and cosines of the places along a side, (32, side), at least float32."""
        exact: dict[str, Any] = {"dtype": torch.promote_types(like.dtype, torch.float32), "device": like.device}
        places = torch.arange(1, side + 1, **exact) * (2 * math.pi / (side + 1e-6))
        periods = 10000 ** (torch.arange(0, FREQUENCIES, 2, **exact) / FREQUENCIES)
        angles = places / periods[:, None]
        return torch.stack([angles.sin(), angles.cos()], dim=1).flatten(0, 1)


def resample_pos_embed(
    pos_embed: Tensor,
    old_grid: tuple[int, int],
    new_grid: tuple[int, int],
    num_prefix_tokens: int = 1,
    rule: Resampling = "size",
) -> Tensor:
    """Resamples a position embedding to another patch grid (bicubic).

    Args:
        pos_embed: (1, num_prefix_tokens + rows * columns, dim).
        old_grid: (rows, columns) of `pos_embed`.
        new_grid: The new (rows, columns).
        num_prefix_tokens: Number of leading rows without a patch; they are kept.
        rule: "size" resamples to the target size with antialias, as timm does; "scale" uses the factors
            `(new + 0.1) / old` without antialias, as released DINO and CRATE-MAE do.

    Returns:
        (1, num_prefix_tokens + new rows * new columns, dim), same dtype; `pos_embed` itself if the grid is the same.

    Raises:
        InputError: If the length of `pos_embed` does not fit `old_grid`.
        UnknownNameError: If `rule` is another word.
    """
    if rule not in get_args(Resampling):
        raise UnknownNameError.of("rule of resampling", rule, get_args(Resampling))
    if pos_embed.shape[1] != num_prefix_tokens + old_grid[0] * old_grid[1]:
        raise InputError(
            f"a position embedding of shape {tuple(pos_embed.shape)} is not for {num_prefix_tokens} prefix tokens "
            f"and a grid of {old_grid[0]} x {old_grid[1]}"
        )
    # Sizes that torch.export leaves open are not compared, or the program would fix the result.
    if not any(isinstance(side, torch.SymInt) for side in new_grid) and old_grid == new_grid:
        return pos_embed
    prefix, patches = pos_embed[:, :num_prefix_tokens], pos_embed[:, num_prefix_tokens:]
    precise = patches.to(torch.promote_types(patches.dtype, torch.float32))
    image = rearrange(precise, "1 (h w) d -> 1 d h w", h=old_grid[0])
    down, across = _weights_by_size(image, new_grid) if rule == "size" else _weights_by_scale(image, new_grid)
    resampled = rearrange(down @ image @ across.mT, "1 d h w -> 1 (h w) d").to(pos_embed.dtype)
    return torch.cat([prefix, resampled], dim=1)


# Written out instead of `F.interpolate`: torch.export would fix its factors to one size, and in torch 2.13 and 2.14
# its antialias gives every row of a one-column grid the same values.


def _weights_by_size(image: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Weight of each old row in each new row, (new rows, old rows), and of columns likewise, with antialias."""
    down, across = (_antialiased_weights(side, old, image) for side, old in zip(size, image.shape[-2:], strict=True))
    return down, across


def _antialiased_weights(side: int, old_side: int, like: Tensor) -> Tensor:
    """(new side, old side), by Keys' kernel with a = -0.5, widened for a smaller side. Cells outside do not count."""
    places, cells = (torch.arange(n, dtype=like.dtype, device=like.device) + 0.5 for n in (side, old_side))
    factor = old_side / torch.full((), side, dtype=like.dtype, device=like.device)
    far = ((cells - factor * places[:, None]) / factor.clamp_min(1)).abs()
    inner = (1.5 * far - 2.5) * far**2 + 1
    outer = ((-0.5 * far + 2.5) * far - 4) * far + 2
    weights = torch.where(far <= 1, inner, torch.where(far < 2, outer, 0))
    return weights / weights.sum(1, keepdim=True)


def _weights_by_scale(image: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The same weights, bicubic with the factors (new + 0.1) / old. The same size changes nothing."""
    old_height, old_width = image.shape[-2:]
    height, width = (torch.full((), side, dtype=image.dtype, device=image.device) for side in size)
    offset = 0.1 * ((height != old_height) | (width != old_width)).to(image.dtype)
    rows, columns = (torch.arange(side, dtype=image.dtype, device=image.device) for side in size)
    down = _cubic_weights(rows, old_height, (height + offset) / old_height)
    across = _cubic_weights(columns, old_width, (width + offset) / old_width)
    return down, across


def _cubic_weights(places: Tensor, old_side: int, factor: Tensor) -> Tensor:
    """(new side, old side): weight of each old cell in each new cell, by Keys' kernel with a = -0.75.

    Border cells stand for cells outside.
    """
    centres = (places[:, None] + 0.5) / factor - 0.5
    taps = centres.floor() + torch.arange(-1, 3, device=places.device)
    near = (centres - taps).abs()
    inner = (1.25 * near - 2.25) * near**2 + 1
    outer = ((-0.75 * near + 3.75) * near - 6) * near + 3
    none = torch.zeros(places.shape[0], old_side, dtype=places.dtype, device=places.device)
    return none.scatter_add(1, taps.clamp(0, old_side - 1).long(), torch.where(near <= 1, inner, outer))
