"""CBSA: contract-and-broadcast self-attention. It compresses all tokens through a few, in linear time."""

from __future__ import annotations

import math
from functools import partial
from typing import Literal, TypeAlias, get_args

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..errors import InputError, UnknownNameError
from ._heads import head_width
from .patch_embed import Size, to_pair
from .readings import Reading, Rows

Grid: TypeAlias = tuple[int, int]
Pool = Literal["released", "patches"]


class CBSA(nn.Module):
    """Compresses tokens onto learned subspaces through m representatives (arXiv 2509.16875, section 3).

    Tokens are rows. `W = X U` for the basis U (dim x head_dim) of a head; a and b are step sizes of that head:

    - representatives: `R0 = Q W`, the patch grid averaged to a smaller one (`RepresentativePool`);
    - contraction: `R = R0 + a A W` with `A = softmax(R0 W^T / sqrt(head_dim))`, m x tokens;
    - broadcast: `b A^T B R` with `B = softmax(R R^T / sqrt(head_dim))`, m x m.

    So a head is exactly `M W` with the matrix `M = b A^T B (Q + a A)`, tokens x tokens, which is never formed. Its
    entries may be negative, since a and b may be. Its rows do not sum to 1, since A is normalised over tokens.

    Args:
        dim: Width of a token.
        num_heads: Number of subspaces.
        head_dim: Dimension of each subspace; `dim // num_heads` if None.
        pool: How the representatives start; see `RepresentativePool`.
        representatives: (rows, columns) of their grid, or one number for both.
        proj_drop: Dropout rate of the output projection.

    Shape:
        - Input: (batch, 1 + rows * columns, dim), any float dtype, [CLS] first; and the grid (rows, columns), or None
          for a square grid.
        - Output: same shape as the input.

    Raises:
        InputError: If the heads cannot divide the width equally. In a forward pass: if the tokens do not fill the grid,
            or "released" gets a grid that is not square.
        UnknownNameError: If `pool` is another word.

    Example:
        >>> cbsa = CBSA(64, num_heads=4)
        >>> cbsa(torch.randn(2, 1 + 14 * 14, 64)).shape
        torch.Size([2, 197, 64])
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        head_dim: int | None = None,
        pool: Pool = "released",
        representatives: Size = 8,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = head_width(dim, num_heads, head_dim)
        inner_dim = num_heads * self.head_dim
        self.qkv = nn.Linear(dim, inner_dim, bias=False)  # the rows are U_1^T, ..., U_K^T
        self.pool = RepresentativePool(pool, representatives)
        self.step_rep = nn.Parameter(torch.randn(num_heads, 1, 1))  # a
        self.step_x = nn.Parameter(torch.randn(num_heads, 1, 1))  # b
        self.proj = nn.Linear(inner_dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def split_heads(self, projected: Tensor) -> Tensor:
        """W of each head.

        Args:
            projected: Output of `qkv` or of `pool`, (batch, tokens, heads * head_dim).

        Returns:
            (batch, heads, tokens, head_dim).
        """
        return rearrange(projected, "b n (h p) -> b h n p", h=self.num_heads)

    def join_heads(self, w: Tensor) -> Tensor:
        """The inverse of `split_heads`."""
        return rearrange(w, "b h n p -> b n (h p)")

    def contract(self, initial: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        """Moves representatives towards similar tokens, or away from them, by the sign of a.

        Args:
            initial: R0, (batch, heads, m, head_dim).
            w: W, (batch, heads, tokens, head_dim).

        Returns:
            A, (batch, heads, m, tokens), whose rows sum to 1, and R, (batch, heads, m, head_dim).
        """
        attention = self._softmax(initial, w)
        return attention, initial + self.step_rep * (attention @ w)

    def exchange(self, representatives: Tensor) -> Tensor:
        """B, the attention between representatives, (batch, heads, m, m), from R (batch, heads, m, head_dim)."""
        return self._softmax(representatives, representatives)

    def _softmax(self, left: Tensor, right: Tensor) -> Tensor:
        return torch.softmax(left * self.head_dim**-0.5 @ right.mT, dim=-1)

    def mixing(self, projected: Tensor, grid: Grid | None = None) -> Rows:
        """Rows of M. One row costs m products for each token.

        Args:
            projected: Output of `qkv`, (batch, tokens, heads * head_dim).
            grid: (rows, columns); None for a square grid.
        """
        w = self.split_heads(projected)
        attention, representatives = self.contraction(projected, grid)
        pooling = self.pool.matrix(projected, grid)
        shared = self.step_x * (self.exchange(representatives) @ (pooling + self.step_rep * attention))
        return Rows(attention.mT, shared, torch.matmul, w)

    def contraction(self, projected: Tensor, grid: Grid | None = None) -> tuple[Tensor, Tensor]:
        """`contract` on the output of `qkv`. For use beside a forward pass: it calls no hooks of the pool."""
        return self.contract(self.split_heads(self.pool.forward(projected, grid)), self.split_heads(projected))

    def readings(self) -> dict[str, Reading]:
        """States of each head.

        - `projections`: W, (batch, heads, tokens, head_dim).
        - `representatives`: R, (batch, heads, m, head_dim).
        - `attention`: rows of M.
        - `authors_attention`: rows of `A^T A`, which the authors of CBSA plot; never negative.
        """
        heads = self.num_heads

        def authors_rows(projected: Tensor, grid: Grid | None) -> Rows:
            attention, _ = self.contraction(projected, grid)
            return Rows(attention.mT, attention, torch.matmul)

        at_pool = partial(Reading, self.pool, "before", num_heads=heads)
        return {
            "projections": Reading(self.qkv, "after", self.split_heads, heads, write=lambda _, w: self.join_heads(w)),
            "representatives": at_pool(lambda *given: self.contraction(*given)[1]),
            "attention": at_pool(self.mixing, rows=True, mixed=self.proj, signed=True),
            "authors_attention": at_pool(authors_rows, rows=True),
        }

    def forward(self, x: Tensor, grid: Grid | None = None) -> Tensor:
        projected = self.qkv(x)
        initial = self.split_heads(self.pool(projected, grid))
        attention, representatives = self.contract(initial, self.split_heads(projected))
        broadcast = self.step_x * (attention.mT @ (self.exchange(representatives) @ representatives))
        out: Tensor = self.proj_drop(self.proj(self.join_heads(broadcast)))
        return out


class RepresentativePool(nn.Module):
    """Averages the tokens to a smaller grid (adaptive pooling). Windows overlap if the sizes do not divide.

    - "released": as in the released code; the published weights expect it. It cuts off the last token instead of
      [CLS]. So cell i of the grid is the token before patch i, and the first cell is [CLS]. Neighbours in the grid are
      then neighbours in the image, except at the ends of rows. It is defined for square grids.
    - "patches": the patches in their own places, on any grid.

    Args:
        kind: "released" or "patches".
        representatives: (rows, columns) of the smaller grid, or one number for both.

    Shape:
        - Input: (batch, 1 + rows * columns, dim), any float dtype, [CLS] first; and (rows, columns), or None for a
          square grid.
        - Output: (batch, m, dim), where m is the number of representatives, row by row of their grid.

    Raises:
        UnknownNameError: If `kind` is another word.
        InputError: If `representatives` is not a size. In a forward pass: see `CBSA`.
    """

    def __init__(self, kind: Pool = "released", representatives: Size = 8) -> None:
        super().__init__()
        if kind not in get_args(Pool):
            raise UnknownNameError.of("pool", kind, get_args(Pool))
        self.kind = kind
        self.representatives = to_pair(representatives)

    def forward(self, tokens: Tensor, grid: Grid | None = None) -> Tensor:
        rows, columns = self.check(tokens, grid)
        cells = tokens[:, self._first : self._first + rows * columns].unflatten(1, (rows, columns))
        # Two small products, because adaptive pooling has no deterministic gradient on GPUs, and no ONNX form.
        down, across = self._windows(rows, columns, tokens)
        pooled: Tensor = _means(down, _means(across, cells).flatten(2)).unflatten(2, (self.representatives[1], -1))
        return pooled.flatten(1, 2)

    def matrix(self, tokens: Tensor, grid: Grid | None = None) -> Tensor:
        """Q, (m, tokens), in the dtype and device of the tokens: the output is Q times the tokens."""
        rows, columns = self.check(tokens, grid)
        down, across = (windows / windows.sum(1, keepdim=True) for windows in self._windows(rows, columns, tokens))
        return F.pad(torch.kron(down, across), (self._first, 1 - self._first))

    def check(self, tokens: Tensor, grid: Grid | None) -> Grid:
        """The grid (rows, columns) of tokens (batch, tokens, dim).

        Raises:
            InputError: If the tokens do not fill it, or this kind cannot pool it.
        """
        count = tokens.shape[1]
        rows, columns = (math.isqrt(max(count - 1, 0)),) * 2 if grid is None else grid
        if rows < 1 or columns < 1 or 1 + rows * columns != count:
            told = "they fill no square grid" if grid is None else f"the grid is {rows} x {columns}"
            raise InputError(
                f"{count} tokens are not [CLS] and a whole grid of patches: {told}. CBSA averages over the grid: give "
                "its (rows, columns), and leave no patch out"
            )
        check_grid(self.kind, (rows, columns))
        return rows, columns

    @property
    def _first(self) -> int:
        """The token in the first cell of the grid."""
        return 0 if self.kind == "released" else 1

    def _windows(self, rows: int, columns: int, like: Tensor) -> tuple[Tensor, Tensor]:
        down, across = self.representatives
        return _windows(down, rows, like), _windows(across, columns, like)

    def extra_repr(self) -> str:
        """The kind and the smaller grid."""
        return f"{self.kind!r}, representatives={self.representatives}"


def check_grid(kind: Pool, grid: Grid) -> None:
    """Raises InputError if the pooling of this kind is not defined for a grid (rows, columns)."""
    rows, columns = grid
    if kind == "released" and rows != columns:
        raise InputError(
            f"a grid of {rows} x {columns} patches is not square, but the released pooling of representatives (which "
            "published weights expect) is shifted by one token and needs a square grid. Give square images, "
            'or make the model with pool="patches" and train it'
        )


def _windows(cells: int, places: int, like: Tensor) -> Tensor:
    """The windows of adaptive pooling, (cells, places): 1 where a place overlaps a cell on the same line."""
    place, cell = (torch.arange(count, device=like.device) for count in (places, cells))
    apart = place * cells - (cell * places)[:, None]
    return ((apart > -cells) & (apart < places)).to(like.dtype)


def _means(windows: Tensor, values: Tensor) -> Tensor:
    """(..., cells, dim): means of (..., places, dim)."""
    means: Tensor = windows @ values / windows.sum(1, keepdim=True)
    return means
