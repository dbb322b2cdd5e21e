"""MSSA: multi-head subspace self-attention, the compression step of a CRATE layer."""

from __future__ import annotations

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ._heads import head_width
from .drop import NO_DROP, DropRates
from .readings import Reading, qkv_readings


class MSSA(nn.Module):
    """Compresses tokens onto learned subspaces (arXiv 2308.16271, Eq. 5).

    Head k owns one basis `U_k` (dim x head_dim), which is query, key and value at once: `w = U_k^T z` and
    `softmax(w w^T / sqrt(head_dim)) w`. An approximate gradient step on the coding rate `Rc(Z; U)` has this form
    (Eq. 6). The output projection stands where the derivation has the bases once more; it is learned.

    Args:
        dim: Width of a token.
        num_heads: Number of subspaces.
        head_dim: Dimension of each subspace; `dim // num_heads` if None.
        proj_bias: Whether the output projection has a bias.
        drop: What training leaves out.

    Shape:
        - Input: (batch, tokens, dim), any float dtype.
        - Output: as the input.

    Raises:
        InputError: If the heads cannot share the width equally.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        head_dim: int | None = None,
        proj_bias: bool = True,
        drop: DropRates = NO_DROP,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = head_width(dim, num_heads, head_dim)
        inner_dim = num_heads * self.head_dim
        self.qkv = nn.Linear(dim, inner_dim, bias=False)  # the rows are U_1^T, ..., U_K^T
        needless = num_heads == 1 and inner_dim == dim
        self.proj = nn.Identity() if needless else nn.Linear(inner_dim, dim, bias=proj_bias)
        self.attn_drop = drop.attn
        self.proj_drop = nn.Dropout(drop.proj)

    def split_heads(self, projected: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value of each head, which here are one tensor.

        Args:
            projected: Output of `qkv`, (batch, tokens, heads * head_dim).

        Returns:
            `w` three times, (batch, heads, tokens, head_dim).
        """
        w = rearrange(projected, "b n (h p) -> b h n p", h=self.num_heads)
        return w, w, w

    def with_keys(self, projected: Tensor, w: Tensor) -> Tensor:
        """What `split_heads` takes apart, (batch, tokens, heads * head_dim), with this `w` in place of its own."""
        return rearrange(w, "b h n p -> b n (h p)")

    def readings(self) -> dict[str, Reading]:
        """`projections`, w of each head, and `attention`, softmax(w w^T / sqrt(head_dim))."""
        return qkv_readings(self)

    def forward(self, x: Tensor) -> Tensor:
        w, _, _ = self.split_heads(self.qkv(x))
        compressed = F.scaled_dot_product_attention(w, w, w, dropout_p=self.attn_drop if self.training else 0.0)
        out: Tensor = self.proj_drop(self.proj(rearrange(compressed, "b h n p -> b n (h p)")))
        return out
