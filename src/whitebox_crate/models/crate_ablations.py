"""The ablations between CRATE and ViT: each replaces one of the two operators (arXiv 2308.16271, Table 2).

CRATE-sth needs no class: it is `Crate(threshold="soft")`.
"""

from __future__ import annotations

from torch import Tensor, nn

from ..layers import (
    ISTA,
    MHSA,
    MLP,
    MSSA,
    NO_DROP,
    DropPath,
    DropRates,
    FoldedISTA,
    NormedPatchEmbed,
    NormedProduct,
    layer_drop_rates,
)
from ..layers.patch_embed import Size
from ._base import GlobalPool, ImageTransformer
from ._block import Block


class CrateMlpBlock(Block):
    """MSSA, then ViT's MLP with its residual."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        head_dim: int | None = None,
        mlp_ratio: float = 4.0,
        drop: DropRates = NO_DROP,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.mssa = MSSA(dim, num_heads, head_dim, drop=drop)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = MLP(dim, int(dim * mlp_ratio), drop.proj)
        self.drop_path = DropPath(drop.path)

    @property
    def attention(self) -> MSSA:
        """MSSA."""
        return self.mssa

    def normed_products(self) -> list[NormedProduct]:
        """Both norms."""
        return [NormedProduct(self, "norm1", self.mssa, "qkv"), NormedProduct(self, "norm2", self.mlp, "fc1")]

    def forward(self, tokens: Tensor) -> Tensor:
        compressed = tokens + self.drop_path(self.mssa(self.norm1(tokens)))
        out: Tensor = compressed + self.drop_path(self.mlp(self.norm2(compressed)))
        return out


class CrateMhsaBlock(Block):
    """ViT's attention, then ISTA."""

    skips_coding = False

    def __init__(
        self,
        dim: int,
        num_heads: int,
        head_dim: int | None = None,
        step_size: float = 0.1,
        sparsity: float = 0.1,
        qkv_bias: bool = True,
        drop: DropRates = NO_DROP,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = MHSA(dim, num_heads, head_dim, qkv_bias, drop)
        self.norm2 = nn.LayerNorm(dim)
        self.ista: ISTA | FoldedISTA = ISTA(dim, step_size, sparsity)
        self.drop_path = DropPath(drop.path)

    @property
    def attention(self) -> MHSA:
        """ViT's attention."""
        return self.attn

    def normed_products(self) -> list[NormedProduct]:
        """Both norms."""
        return [NormedProduct(self, "norm1", self.attn, "qkv"), NormedProduct(self, "norm2", self, "ista")]

    def forward(self, tokens: Tensor) -> Tensor:
        attended = tokens + self.drop_path(self.attn(self.norm1(tokens)))
        out: Tensor = self.ista(self.norm2(attended))
        return out


class CrateMlp(ImageTransformer):
    """CRATE-MLP: CRATE with ViT's MLP in place of ISTA. It takes the arguments of `Crate`, and `mlp_ratio`."""

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
        mlp_ratio: float = 4.0,
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
                CrateMlpBlock(embed_dim, num_heads, head_dim, mlp_ratio, drop=drop)
                for drop in layer_drop_rates(depth, attn_drop_rate, proj_drop_rate, drop_path_rate)
            ],
            embed_dim=embed_dim,
            num_classes=num_classes,
            global_pool=global_pool,
            norm_eps=1e-5,
            drop_rate=drop_rate,
            patch_drop_rate=patch_drop_rate,
        )


class CrateMhsa(ImageTransformer):
    """CRATE-MHSA: CRATE with ViT's attention in place of MSSA. It takes the arguments of `Crate`, and `qkv_bias`."""

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
        step_size: float = 0.1,
        sparsity: float = 0.1,
        qkv_bias: bool = True,
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
                CrateMhsaBlock(embed_dim, num_heads, head_dim, step_size, sparsity, qkv_bias, drop=drop)
                for drop in layer_drop_rates(depth, attn_drop_rate, proj_drop_rate, drop_path_rate)
            ],
            embed_dim=embed_dim,
            num_classes=num_classes,
            global_pool=global_pool,
            norm_eps=1e-5,
            drop_rate=drop_rate,
            patch_drop_rate=patch_drop_rate,
        )
