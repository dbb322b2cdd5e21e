"""CRATE without its coding step: a stack of MSSA alone, the attention-only transformer (AoT)."""

from __future__ import annotations

from torch import Tensor, nn

from ..layers import (
    MSSA,
    NO_DROP,
    DropPath,
    DropRates,
    NormedPatchEmbed,
    NormedProduct,
    Reading,
    layer_drop_rates,
    layer_readings,
)
from ..layers.mssa import Proj
from ..layers.patch_embed import Size
from ._base import GlobalPool, ImageTransformer
from ._block import Block


class CrateAttentionOnlyBlock(Block):
    """`z' = z + MSSA(LN(z))`, and nothing else (arXiv 2506.03790). It has no `norm2`; `compressed` is its output.

    Args:
        dim: Width of a token.
        num_heads: Number of subspaces.
        head_dim: Dimension of a subspace; `dim // num_heads` if None.
        proj: MSSA's output projection, "learned" or "tied".
        drop: Dropout rates.

    Shape:
        - Input: (batch, tokens, dim), any float dtype.
        - Output: same shape as the input.

    Raises:
        UnknownNameError: If `proj` is another word.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        head_dim: int | None = None,
        proj: Proj = "learned",
        drop: DropRates = NO_DROP,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.mssa = MSSA(dim, num_heads, head_dim, proj=proj, drop=drop)
        self.drop_path = DropPath(drop.path)

    @property
    def attention(self) -> MSSA:
        """MSSA."""
        return self.mssa

    def readings(self) -> dict[str, Reading]:
        """See `Block.readings`."""
        return {**self.mssa.readings(), "compressed": layer_readings(self)["output"]}

    def normed_products(self) -> list[NormedProduct]:
        """The norm; it stays if the bases are read twice."""
        return [] if self.mssa.tied else [NormedProduct(self, "norm1", self.mssa, "qkv")]

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = tokens + self.drop_path(self.mssa(self.norm1(tokens)))
        return out


class CrateAttentionOnly(ImageTransformer):
    """CRATE with only MSSA in each layer. It takes the arguments of `Crate`, except those of ISTA and `skip`.

    A layer has half of CRATE's products, so the same number of parameters makes a deeper stack.
    """

    def __init__(
        self,
        img_size: Size = 224,
        patch_size: Size = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: GlobalPool = "token",
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        head_dim: int | None = None,
        proj: Proj = "learned",
        dynamic_img_size: bool = False,
        drop_rate: float = 0.0,
        patch_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__(
            NormedPatchEmbed(embed_dim, img_size, patch_size, in_chans, dynamic_img_size),
            [
                CrateAttentionOnlyBlock(embed_dim, num_heads, head_dim, proj, drop=drop)
                for drop in layer_drop_rates(depth, attn_drop_rate, proj_drop_rate, drop_path_rate)
            ],
            embed_dim=embed_dim,
            num_classes=num_classes,
            global_pool=global_pool,
            norm_eps=1e-5,
            drop_rate=drop_rate,
            patch_drop_rate=patch_drop_rate,
        )
