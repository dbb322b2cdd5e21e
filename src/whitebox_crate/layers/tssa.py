"""TSSA: token statistics self-attention, the compression step of a ToST layer, in linear time."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from ._heads import head_width
from .drop import NO_DROP, DropRates
from .readings import Reading

EPS = 1e-8  # of divisors, as released


class TSSA(nn.Module):
    """Compresses tokens by second moments on learned subspaces (arXiv 2412.17810, section 3), as released.

    `w_j` is the projection of token j on the subspace of head k. Each channel c of a head shrinks by its second moment:

    - membership: `Pi_kj = softmax over heads of tau_k sum_c (w_j[c] / |w[c]|)^2`, with `|w[c]|` the norm over tokens;
    - moments: `m_k[c] = sum_j Pi_kj w_j[c]^2 / sum_j Pi_kj`;
    - statistics: `D_k[c] = 1 / (1 + m_k[c])`;
    - output: `-Pi_kj w_j[c] D_k[c]` of all heads side by side, through a learned projection.

    No token attends to another; tokens interact only through the moments. With Pi held fixed, the output before the
    projection is minus the gradient by w of `sum_k (n_k / 2) sum_c log(1 + m_k[c])` with `n_k = sum_j Pi_kj`. That is
    the variational form of the coding rate (`whitebox_crate.analysis.variational_coding_rate`). In the derivation the
    bases take the place of the output projection, and there is no bias.

    Args:
        dim: Width of a token.
        num_heads: Number of subspaces.
        head_dim: Dimension of each subspace; `dim // num_heads` if None.
        qkv_bias: Whether projections on the subspaces have a bias.
        drop: Dropout rates; `attn` is the rate of the statistics.

    Shape:
        - Input: (batch, tokens, dim), any float dtype.
        - Output: same shape as the input.

    Raises:
        InputError: If the heads cannot divide the width equally.
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
        self.qkv = nn.Linear(dim, inner_dim, bias=qkv_bias)  # the rows are U_1^T, ..., U_K^T
        self.temperature = nn.Parameter(torch.ones(num_heads, 1))  # tau
        self.attend = nn.Softmax(dim=1)
        self.attn_drop = nn.Dropout(drop.attn)
        self.proj = nn.Linear(inner_dim, dim)
        self.proj_drop = nn.Dropout(drop.proj)

    def split_heads(self, projected: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value of each head, which are the same tensor here.

        Args:
            projected: Output of `qkv`, (batch, tokens, heads * head_dim).

        Returns:
            `w` three times, (batch, heads, tokens, head_dim).
        """
        w = rearrange(projected, "b n (h p) -> b h n p", h=self.num_heads)
        return w, w, w

    def with_keys(self, projected: Tensor, w: Tensor) -> Tensor:
        """`w` in the form of the output of `qkv`, (batch, tokens, heads * head_dim)."""
        return rearrange(w, "b h n p -> b n (h p)")

    def membership(self, w: Tensor) -> Tensor:
        """Pi: how much each token belongs to each head.

        Args:
            w: (batch, heads, tokens, head_dim).

        Returns:
            (batch, heads, tokens), in [0, 1]; the sum over heads is 1.
        """
        squares = w.square()
        energy = squares.sum(dim=2).clamp_min(_least(squares, 1e-24))  # |w[c]|^2
        belonging: Tensor = self.attend(self.temperature * torch.einsum("bhnp,bhp->bhn", squares, 1 / energy))
        return belonging

    def forward(self, x: Tensor) -> Tensor:
        w, _, _ = self.split_heads(self.qkv(x))
        membership = self.membership(w)
        statistics = self.attn_drop(1 / (1 + second_moments(w, membership)))
        compressed = membership[..., None] * w * -statistics[:, :, None]
        out: Tensor = self.proj_drop(self.proj(rearrange(compressed, "b h n p -> b n (h p)")))
        return out

    def readings(self) -> dict[str, Reading]:
        """`projections`, w of each head; `membership`, Pi (batch, heads, tokens); `statistics`, D (batch, heads, p)."""

        def keys(projected: Tensor) -> Tensor:
            return self.split_heads(projected)[1]

        def itself(state: Tensor) -> Tensor:
            return state

        heads = self.num_heads
        return {
            "projections": Reading(self.qkv, "after", keys, heads, write=self.with_keys),
            "membership": Reading(self.attend, "after", itself, heads),
            "statistics": Reading(self.attn_drop, "before", itself, heads),
        }


def second_moments(w: Tensor, membership: Tensor) -> Tensor:
    """m_k[c], the mean of w_j[c]^2 over the tokens of head k.

    Args:
        w: (..., heads, tokens, head_dim).
        membership: Pi, (..., heads, tokens).

    Returns:
        (..., heads, head_dim), not negative.
    """
    share = membership / (membership.sum(dim=-1, keepdim=True) + _least(membership, EPS))
    return torch.einsum("...n,...np->...p", share, w.square())


def _least(tensor: Tensor, value: float) -> float:
    """The value, or the smallest normal number of the dtype if that is larger; half precision would divide by zero."""
    return max(value, torch.finfo(tensor.dtype).tiny)
