"""MSSA: multi-head subspace self-attention, the compression step of a CRATE layer."""

from __future__ import annotations

from typing import Literal, get_args

from einops import rearrange
from torch import Tensor, nn

from ..errors import UnknownNameError
from ._attend import attend
from ._heads import head_width
from .drop import NO_DROP, DropRates
from .readings import Reading, qkv_readings

Proj = Literal["learned", "tied"]


class MSSA(nn.Module):
    """Compresses tokens onto learned subspaces (arXiv 2308.16271, Eq. 5).

    Head k has one basis `U_k` (dim x head_dim), which serves as query, key and value: `w = U_k^T z` and
    `softmax(w w^T / sqrt(head_dim)) w`. An approximate gradient step on the coding rate `Rc(Z; U)` has this form
    (Eq. 6). In the derivation the bases come once more at the end; here a learned output projection takes their place.
    With `proj="tied"` the bases do: `MSSA(z) = sum_k U_k w_k softmax(...)`, without a projection and without a bias.
    (CRATE-T in the code of arXiv 2411.17182 is another network, which applies the read-in matrix twice.)

    Args:
        dim: Width of a token.
        num_heads: Number of subspaces.
        head_dim: Dimension of each subspace; `dim // num_heads` if None.
        proj_bias: Whether a learned output projection has a bias.
        proj: The output projection, "learned" or "tied".
        drop: Dropout rates.

    Shape:
        - Input: (batch, tokens, dim), any float dtype.
        - Output: same shape as the input.

    Raises:
        InputError: If the heads cannot divide the width equally.
        UnknownNameError: If `proj` is another word.

    Example:
        >>> MSSA(dim=128, num_heads=4)(torch.rand(2, 257, 128)).shape
        torch.Size([2, 257, 128])
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        head_dim: int | None = None,
        proj_bias: bool = True,
        proj: Proj = "learned",
        drop: DropRates = NO_DROP,
    ) -> None:
        super().__init__()
        if proj not in get_args(Proj):
            raise UnknownNameError.of("proj", proj, get_args(Proj))
        self.num_heads = num_heads
        self.head_dim = head_width(dim, num_heads, head_dim)
        inner_dim = num_heads * self.head_dim
        self.qkv = nn.Linear(dim, inner_dim, bias=False)  # the rows are U_1^T, ..., U_K^T
        self.tied = proj == "tied"
        # One head as wide as a token needs no projection.
        self.projects = not self.tied and (num_heads, inner_dim) != (1, dim)
        self.proj = nn.Linear(inner_dim, dim, bias=proj_bias) if self.projects else nn.Identity()
        self.attn_drop = drop.attn
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

    def readings(self) -> dict[str, Reading]:
        """`projections`, w of each head, and `attention`, softmax(w w^T / sqrt(head_dim))."""
        return qkv_readings(self)

    def extra_repr(self) -> str:
        """The output projection, if no module shows it."""
        return "proj='tied'" if self.tied else ""

    def forward(self, x: Tensor) -> Tensor:
        w, _, _ = self.split_heads(self.qkv(x))
        compressed = attend(w, w, w, self.attn_drop if self.training else 0.0)
        out: Tensor = self.proj(rearrange(compressed, "b h n p -> b n (h p)"))
        if self.tied:
            out = out @ self.qkv.weight  # tokens are rows: the sum of U_k over heads
        out = self.proj_drop(out)
        return out
