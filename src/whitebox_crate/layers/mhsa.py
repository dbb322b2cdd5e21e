"""MHSA: the multi-head self-attention of ViT, for comparison with CRATE's MSSA."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from ._attend import attend
from ._heads import head_width
from .drop import NO_DROP, DropRates
from .readings import Reading, qkv_readings


class MHSA(nn.Module):
    """Multi-head self-attention with separate query, key and value (arXiv 2010.11929, appendix A; timm's names).

    Args:
        dim: Width of a token.
        num_heads: Number of heads.
        head_dim: Width of a head; `dim // num_heads` if None.
        qkv_bias: Whether the joint projection has a bias.
        drop: Dropout rates.

    Shape:
        - Input: (batch, tokens, dim), any float dtype.
        - Output: same shape as the input.

    Raises:
        InputError: If the heads cannot divide the width equally.

    Example:
        >>> MHSA(dim=128, num_heads=4)(torch.rand(2, 257, 128)).shape
        torch.Size([2, 257, 128])
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        head_dim: int | None = None,
        qkv_bias: bool = True,
        drop: DropRates = NO_DROP,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = head_width(dim, num_heads, head_dim)
        inner_dim = num_heads * self.head_dim
        self.qkv = nn.Linear(dim, 3 * inner_dim, bias=qkv_bias)
        self.proj = nn.Linear(inner_dim, dim)
        self.attn_drop = drop.attn
        self.proj_drop = nn.Dropout(drop.proj)

    def split_heads(self, projected: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value of each head.

        Args:
            projected: Output of `qkv`, (batch, tokens, 3 * heads * head_dim).

        Returns:
            Three tensors (batch, heads, tokens, head_dim).
        """
        q, k, v = rearrange(projected, "b n (qkv h p) -> qkv b h n p", qkv=3, h=self.num_heads).unbind(0)
        return q, k, v

    def with_keys(self, projected: Tensor, k: Tensor) -> Tensor:
        """The output of `qkv`, (batch, tokens, 3 * heads * head_dim), with its keys replaced by `k`."""
        q, _, v = self.split_heads(projected)
        return torch.cat([rearrange(part, "b h n p -> b n (h p)") for part in (q, k, v)], dim=-1)

    def readings(self) -> dict[str, Reading]:
        """`projections`, the keys of each head, and `attention`, softmax(q k^T / sqrt(head_dim))."""
        return qkv_readings(self)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split_heads(self.qkv(x))
        attended = attend(q, k, v, self.attn_drop if self.training else 0.0)
        out: Tensor = self.proj_drop(self.proj(rearrange(attended, "b h n p -> b n (h p)")))
        return out
