"""CRATE-alpha: CRATE with a residual around sparse coding in an overcomplete dictionary."""

from __future__ import annotations

from torch import Tensor, nn

from ..layers import (
    MSSA,
    NO_DROP,
    ODL,
    ConvPatchEmbed,
    DropPath,
    DropRates,
    NormedProduct,
    layer_drop_rates,
)
from ..layers.patch_embed import Size
from ._base import GlobalPool, ImageTransformer
from ._block import Block

BLOCK_NORM_EPS = 1e-6


class CrateAlphaBlock(Block):
    """MSSA compresses, ODL codes sparsely and decodes, each with a residual (arXiv 2405.20299).

    `h = z + MSSA(LN(z))`, `z' = h + ODL(LN(h))`. No projection has a bias. The sparse code of a layer is
    `block.odl.encode(block.norm2(h))`, with h from `capture(model, "compressed")`.

    Args:
        dim: Width of a token.
        num_heads: Number of subspaces.
        head_dim: Dimension of a subspace; `dim // num_heads` if None.
        step_size: eta of ODL.
        sparsity: lambda of ODL.
        expansion: Atoms of ODL's dictionaries per channel of a token.
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
        step_size: float = 0.1,
        sparsity: float = 0.1,
        expansion: int = 4,
        drop: DropRates = NO_DROP,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=BLOCK_NORM_EPS)
        self.mssa = MSSA(dim, num_heads, head_dim, proj_bias=False, drop=drop)
        self.norm2 = nn.LayerNorm(dim, eps=BLOCK_NORM_EPS)
        self.odl = ODL(dim, expansion, step_size, sparsity)
        self.drop_path = DropPath(drop.path)

    @property
    def attention(self) -> MSSA:
        """MSSA."""
        return self.mssa

    def normed_products(self) -> list[NormedProduct]:
        """The first norm. ODL subtracts its reconstruction from the output of the second, which therefore stays."""
        return [NormedProduct(self, "norm1", self.mssa, "qkv")]

    def forward(self, tokens: Tensor) -> Tensor:
        compressed = tokens + self.drop_path(self.mssa(self.norm1(tokens)))
        out: Tensor = compressed + self.drop_path(self.odl(self.norm2(compressed)))
        return out


class CrateAlpha(ImageTransformer):
    """CRATE-alpha as released (arXiv 2405.20299): one convolution, [CLS], positions, `depth` layers, LayerNorm, Linear.

    Args:
        img_size: (height, width) or one number, pixels.
        patch_size: (height, width) or one number, pixels.
        in_chans: Channels of the image.
        num_classes: Number of classes; 0 for no head.
        global_pool: "token" as released, "avg" (patch tokens), "mean" (all tokens) or "".
        embed_dim: Width of a token.
        depth: Number of layers.
        num_heads: Number of subspaces.
        head_dim: Dimension of a subspace; `embed_dim // num_heads` if None.
        step_size: eta of ODL.
        sparsity: lambda of ODL.
        expansion: Atoms of ODL's dictionaries per channel of a token.
        norm_eps: eps of the last LayerNorm: 1e-5 in the released PyTorch code, 1e-6 in the JAX original.
        dynamic_img_size: Whether to take images of any size that the patch divides.
        drop_rate, patch_drop_rate, proj_drop_rate, attn_drop_rate, drop_path_rate: See `Crate`; samples can skip
            ODL too.

    Shape:
        - Input: (batch, in_chans, height, width), float.
        - Output: (batch, num_classes).
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
        step_size: float = 0.1,
        sparsity: float = 0.1,
        expansion: int = 4,
        norm_eps: float = 1e-5,
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
                CrateAlphaBlock(embed_dim, num_heads, head_dim, step_size, sparsity, expansion, drop=drop)
                for drop in layer_drop_rates(depth, attn_drop_rate, proj_drop_rate, drop_path_rate)
            ],
            embed_dim=embed_dim,
            num_classes=num_classes,
            global_pool=global_pool,
            norm_eps=norm_eps,
            drop_rate=drop_rate,
            patch_drop_rate=patch_drop_rate,
        )
        self._init_weights()

    def _init_weights(self) -> None:
        """Initial values of the JAX original (github.com/UCSC-VLAA/CRATE-alpha, models/crate.py)."""
        nn.init.normal_(self.cls_token, std=1e-6)
        nn.init.normal_(self.pos_embed, std=0.02)
        for module in self.modules():
            _init_projection(module)

    def new_head(self, num_classes: int) -> nn.Module:
        """See `ImageTransformer.new_head`."""
        return _init_projection(super().new_head(num_classes))


def _init_projection(module: nn.Module) -> nn.Module:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_uniform_(module.weight)
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
    return module
