"""CBSA: contract-and-broadcast self-attention, which compresses all tokens by way of a few; linear in their number."""

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
    """Compresses tokens onto learned subspaces by way of m representatives (arXiv 2509.16875, section 3).

    In rows, with `W = X U` for the basis U (dim x head_dim) of a head, and the step sizes a and b of that head:

    - representatives: `R0 = Q W`, the patch grid averaged to a smaller one (`RepresentativePool`);
    - contraction: `R = R0 + a A W` with `A = softmax(R0 W^T / sqrt(head_dim))`, m x tokens;
    - broadcast: `b A^T B R` with `B = softmax(R R^T / sqrt(head_dim))`, m x m.

    So a head is exactly `M W` with the matrix `M = b A^T B (Q + a A)`, tokens x tokens, which is never formed. Its
    entries may be negative, and its rows do not sum to 1: a and b are of either sign, and A is normalised over tokens.

    Args:
        dim: Width of a token.
        num_heads: Number of subspaces.
        head_dim: Dimension of each subspace; `dim // num_heads` if None.
        pool: What the representatives begin as; see `RepresentativePool`.
        representatives: (rows, columns) of their grid, or one number for both.
        proj_drop: Share of the entries that training leaves out of what the output projection gives.

    Shape:
        - Input: (batch, 1 + rows * columns, dim), any float dtype, [CLS] first; and the grid (rows, columns), or None
          for a square one.
        - Output: as the input.

    Raises:
        InputError: If the heads cannot share the width equally; in a forward pass, if the tokens do not fill the grid,
            or "released" is given a grid that is not square.
        UnknownNameError: If `pool` is neither of the two.

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
        """What `split_heads` took apart."""
        return rearrange(w, "b h n p -> b n (h p)")

    def contract(self, initial: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        """Moves representatives towards the tokens that they are alike to, or away, by the sign of a.

        Args:
            initial: R0, (batch, heads, m, head_dim).
            w: W, (batch, heads, tokens, head_dim).

        Returns:
            A, (batch, heads, m, tokens), each row summing to 1, and R, (batch, heads, m, head_dim).
        """
        attention = self._softmax(initial, w)
        return attention, initial + self.step_rep * (attention @ w)

    def exchange(self, representatives: Tensor) -> Tensor:
        """B, what representatives see of each other, (batch, heads, m, m) for R (batch, heads, m, head_dim)."""
        return self._softmax(representatives, representatives)

    def _softmax(self, left: Tensor, right: Tensor) -> Tensor:
        return torch.softmax(left * self.head_dim**-0.5 @ right.mT, dim=-1)

    def mixing(self, projected: Tensor, grid: Grid | None = None) -> Rows:
        """Rows of M; one costs m products for each token.

        Args:
            projected: Output of `qkv`, (batch, tokens, heads * head_dim).
            grid: (rows, columns); None for a square one.
        """
        w = self.split_heads(projected)
        attention, representatives = self.contraction(projected, grid)
        pooling = self.pool.matrix(projected, grid)
        shared = self.step_x * (self.exchange(representatives) @ (pooling + self.step_rep * attention))
        return Rows(attention.mT, shared, torch.matmul, w)

    def contraction(self, projected: Tensor, grid: Grid | None = None) -> tuple[Tensor, Tensor]:
        """As `contract`, of the output of `qkv`; beside a forward pass, for hooks of the pool are not called."""
        return self.contract(self.split_heads(self.pool.forward(projected, grid)), self.split_heads(projected))

    def readings(self) -> dict[str, Reading]:
        """States of each head.

        - `projections`: W, (batch, heads, tokens, head_dim).
        - `representatives`: R, (batch, heads, m, head_dim).
        - `attention`: rows of M.
        - `authors_attention`: rows of `A^T A`, which the authors of CBSA plot; they are not negative.
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
    """The tokens averaged to a smaller grid, in windows that overlap where sizes do not divide (adaptive pooling).

    - "released": as the released code does it, and the published weights expect. It cuts off the last token instead of
      [CLS], so that cell i of the grid is the token before patch i, and [CLS] the first. Neighbours in the grid are
      then neighbours in the image but for the ends of rows; it is defined for square grids.
    - "patches": the patches where they are, on any grid.

    Args:
        kind: "released" or "patches".
        representatives: (rows, columns) of the smaller grid, or one number for both.

    Shape:
        - Input: (batch, 1 + rows * columns, dim), any float dtype, [CLS] first; and (rows, columns), or None for a
          square grid.
        - Output: (batch, m, dim), m being the number of representatives, rows of their grid first.

    Raises:
        UnknownNameError: If `kind` is neither of the two.
        InputError: If `representatives` is no size; in a forward pass as of `CBSA`.
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
        # By two small products: adaptive pooling has no deterministic gradient on GPUs, and no form in ONNX.
        down, across = self._windows(rows, columns, tokens)
        pooled: Tensor = _means(down, _means(across, cells).flatten(2)).unflatten(2, (self.representatives[1], -1))
        return pooled.flatten(1, 2)

    def matrix(self, tokens: Tensor, grid: Grid | None = None) -> Tensor:
        """Q, (m, tokens), such that the output is Q times the tokens; of their dtype and device."""
        rows, columns = self.check(tokens, grid)
        down, across = (windows / windows.sum(1, keepdim=True) for windows in self._windows(rows, columns, tokens))
        return F.pad(torch.kron(down, across), (self._first, 1 - self._first))

    def check(self, tokens: Tensor, grid: Grid | None) -> Grid:
        """The grid (rows, columns) of tokens (batch, tokens, dim).

        Raises:
            InputError: If they do not fill it, or it is not one for this kind.
        """
        count = tokens.shape[1]
        rows, columns = (math.isqrt(max(count - 1, 0)),) * 2 if grid is None else grid
        if rows < 1 or columns < 1 or 1 + rows * columns != count:
            told = "these fill no square grid" if grid is None else f"the grid is {rows} x {columns}"
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
            f"a grid of {rows} x {columns} patches is not square: the released pooling of representatives, which "
            "published weights expect, is shifted by one token and defined for square grids alone. Take square images, "
            'or make the model with pool="patches" and train it'
        )


def _windows(cells: int, places: int, like: Tensor) -> Tensor:
    """(cells, places), 1 where a place belongs to a cell: on one line, cut once into cells and once into places, they
    overlap. These are the windows of adaptive pooling."""
    place, cell = (torch.arange(count, device=like.device) for count in (places, cells))
    apart = place * cells - (cell * places)[:, None]
    return ((apart > -cells) & (apart < places)).to(like.dtype)


def _means(windows: Tensor, values: Tensor) -> Tensor:
    """(..., cells, dim): means of (..., places, dim)."""
    means: Tensor = windows @ values / windows.sum(1, keepdim=True)
    return means
