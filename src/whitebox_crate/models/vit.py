"""ViT: the black box to compare CRATE with, in timm's structure and state-dict names."""

from __future__ import annotations

from torch import Tensor, nn

from ..layers import (
    MHSA,
    MLP,
    NO_DROP,
    ConvPatchEmbed,
    DropPath,
    DropRates,
    LayerScale,
    NormedProduct,
    ScaledProduct,
    layer_drop_rates,
)
from ..layers.patch_embed import Size
from ._base import GlobalPool, ImageTransformer
from ._block import Block
from ._initial import init_linear

NORM_EPS = 1e-6


class ViTBlock(Block):
    """Pre-norm attention and MLP, each with a residual (arXiv 2010.11929, Eq. 2 and 3), optionally with LayerScale.

    Args:
        dim: Width of a token.
        num_heads: Number of heads.
        head_dim: Width of a head; `dim // num_heads` if None.
        mlp_ratio: Hidden width of the MLP over `dim`.
        qkv_bias: Whether the joint projection has a bias.
        init_values: Initial value of LayerScale's numbers; no LayerScale if None or 0.
        drop: Dropout rates.

    Shape:
        - Input: (batch, tokens, dim), any float dtype.
        - Output: same shape as the input.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        head_dim: int | None = None,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        init_values: float | None = None,
        drop: DropRates = NO_DROP,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.attn = MHSA(dim, num_heads, head_dim, qkv_bias, drop)
        self.ls1 = LayerScale(dim, init_values) if init_values else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = MLP(dim, int(dim * mlp_ratio), drop.proj)
        self.ls2 = LayerScale(dim, init_values) if init_values else nn.Identity()
        self.drop_path = DropPath(drop.path)

    @property
    def attention(self) -> MHSA:
        """ViT's attention."""
        return self.attn

    def normed_products(self) -> list[NormedProduct | ScaledProduct]:
        """Both norms, and both LayerScales if there are any."""
        norms = [NormedProduct(self, "norm1", self.attn, "qkv"), NormedProduct(self, "norm2", self.mlp, "fc1")]
        scales = [ScaledProduct(self, "ls1", self.attn, "proj"), ScaledProduct(self, "ls2", self.mlp, "fc2")]
        return [*norms, *(pair for pair in scales if type(getattr(self, pair.scale)) is not nn.Identity)]

    def forward(self, tokens: Tensor) -> Tensor:
        attended = tokens + self.drop_path(self.ls1(self.attn(self.norm1(tokens))))
        out: Tensor = attended + self.drop_path(self.ls2(self.mlp(self.norm2(attended))))
        return out


class ViT(ImageTransformer):
    """Vision transformer. It takes the arguments of `Crate`, and timm's arguments for ViTs.

    Args:
        mlp_ratio: Hidden width of the MLP over `embed_dim`.
        qkv_bias: Whether the joint projection of attention has a bias.
        init_values: Initial value of LayerScale's numbers (arXiv 2103.17239); no LayerScale if None or 0.
        reg_tokens: Number of registers, learned tokens between [CLS] and the patches (arXiv 2309.16588).
        no_embed_class: Whether only patches have positions, not [CLS] and registers.

    Shape:
        - Input: (batch, in_chans, height, width), float.
        - Output: (batch, num_classes).

    Example:
        >>> model = ViT(img_size=32, patch_size=4, num_classes=10, embed_dim=64, depth=4, num_heads=4)
        >>> model(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 10])
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
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        init_values: float | None = None,
        reg_tokens: int = 0,
        no_embed_class: bool = False,
        dynamic_img_size: bool = False,
        drop_rate: float = 0.0,
        patch_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__(
            ConvPatchEmbed(embed_dim, img_size, patch_size, in_chans, dynamic_img_size),
            [
                ViTBlock(embed_dim, num_heads, head_dim, mlp_ratio, qkv_bias, init_values, drop=drop)
                for drop in layer_drop_rates(depth, attn_drop_rate, proj_drop_rate, drop_path_rate)
            ],
            embed_dim=embed_dim,
            num_classes=num_classes,
            global_pool=global_pool,
            norm_eps=NORM_EPS,
            drop_rate=drop_rate,
            patch_drop_rate=patch_drop_rate,
            reg_tokens=reg_tokens,
            no_embed_class=no_embed_class,
        )
        self._init_weights()

    def _init_weights(self) -> None:
        """timm's default: truncated normal of 0.02 for positions and Linear weights, zero biases."""
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for token in (self.cls_token, self.reg_token):
            if token is not None:
                nn.init.normal_(token, std=1e-6)
        for module in self.modules():
            init_linear(module)

    def ignores_key(self, name: str) -> bool:
        """True for the mask token: DINOv2's files have it, but only its training uses it."""
        return name == "mask_token"

    def new_head(self, num_classes: int) -> nn.Module:
        """See `ImageTransformer.new_head`."""
        return init_linear(super().new_head(num_classes))
