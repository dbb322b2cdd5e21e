"""CRATE: each layer compresses tokens onto subspaces (MSSA), then codes them sparsely (ISTA)."""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor, nn

from ..errors import UnknownNameError
from ..layers import (
    ISTA,
    MSSA,
    NO_DROP,
    DropPath,
    DropRates,
    FoldedISTA,
    NormedPatchEmbed,
    NormedProduct,
    layer_drop_rates,
)
from ..layers.ista import Threshold
from ..layers.mssa import Proj
from ..layers.patch_embed import Size
from ._base import GlobalPool, ImageTransformer
from ._block import Block

Skip = Literal["input", "normalized"]


class CrateBlock(Block):
    """One step of sparse rate reduction (arXiv 2308.16271, Eq. 8): MSSA compresses, ISTA codes sparsely.

    `h = z + MSSA(LN(z))`, `z' = ISTA(LN(h))` as released; with `skip="normalized"`, `h = LN(z) + MSSA(LN(z))` as in
    Algorithm 1. With `proj="tied"` MSSA is the step of the derivation, `h = z + sum_k U_k w_k softmax(...)`.

    Args:
        dim: Width of a token.
        num_heads: Number of subspaces.
        head_dim: Dimension of a subspace; `dim // num_heads` if None.
        step_size: eta of ISTA.
        sparsity: lambda of ISTA.
        threshold: ISTA's threshold, "relu" or "soft".
        skip: The tokens that MSSA is added to, "input" or "normalized".
        proj: MSSA's output projection, "learned" or "tied".
        drop: Dropout rates.

    Shape:
        - Input: (batch, tokens, dim), any float dtype.
        - Output: same shape as the input; not negative with "relu".

    Raises:
        UnknownNameError: If `threshold`, `skip` or `proj` is another word.
    """

    skips_coding = False

    def __init__(
        self,
        dim: int,
        num_heads: int,
        head_dim: int | None = None,
        step_size: float = 0.1,
        sparsity: float = 0.1,
        threshold: Threshold = "relu",
        skip: Skip = "input",
        proj: Proj = "learned",
        drop: DropRates = NO_DROP,
    ) -> None:
        super().__init__()
        if skip not in get_args(Skip):
            raise UnknownNameError.of("skip", skip, get_args(Skip))
        self.skip = skip
        self.norm1 = nn.LayerNorm(dim)
        self.mssa = MSSA(dim, num_heads, head_dim, proj=proj, drop=drop)
        self.norm2 = nn.LayerNorm(dim)
        self.ista: ISTA | FoldedISTA = ISTA(dim, step_size, sparsity, threshold)
        self.drop_path = DropPath(drop.path)

    @property
    def attention(self) -> MSSA:
        """MSSA."""
        return self.mssa

    def normed_products(self) -> list[NormedProduct]:
        """Both norms. The first stays if the skip adds its output too, or if the bases are read twice."""
        reads_once = self.skip == "input" and not self.mssa.tied
        attended = [NormedProduct(self, "norm1", self.mssa, "qkv")] if reads_once else []
        return [*attended, NormedProduct(self, "norm2", self, "ista")]

    def forward(self, tokens: Tensor) -> Tensor:
        normed = self.norm1(tokens)
        skipped = normed if self.skip == "normalized" else tokens
        compressed = skipped + self.drop_path(self.mssa(normed))
        out: Tensor = self.ista(self.norm2(compressed))
        return out


class Crate(ImageTransformer):
    """CRATE as released: patch embedding with two norms, [CLS], positions, `depth` layers, LayerNorm, Linear.

    Args:
        img_size: (height, width) or one number, pixels.
        patch_size: (height, width) or one number, pixels.
        in_chans: Channels of the image.
        num_classes: Number of classes; 0 for no head.
        global_pool: "token", "avg" (patch tokens), "mean" (all tokens, as released) or "".
        embed_dim: Width of a token.
        depth: Number of layers.
        num_heads: Number of subspaces.
        head_dim: Dimension of a subspace; `embed_dim // num_heads` if None.
        step_size: eta of ISTA.
        sparsity: lambda of ISTA.
        threshold: ISTA's threshold; "soft" makes CRATE-sth of arXiv 2308.16271, Table 2.
        skip: The tokens that MSSA is added to: its "input" as released, or "normalized" as in Algorithm 1.
        proj: MSSA's output projection: "learned" as released, or "tied" to the bases as in the derivation.
        dynamic_img_size: Whether to take images of any size that the patch divides.
        drop_rate: Dropout rate of the head's input. All rates here are for training only.
        patch_drop_rate: Share of the patches to drop, in `forward` and `forward_features`.
        proj_drop_rate: Dropout rate of MSSA's output projection; ISTA has no dropout.
        attn_drop_rate: Dropout rate of attention.
        drop_path_rate: Share of the samples that skip MSSA in the last layer; it grows from 0 in the first layer.

    Shape:
        - Input: (batch, in_chans, height, width), float.
        - Output: (batch, num_classes).

    Example:
        >>> model = Crate(img_size=32, patch_size=4, num_classes=10, embed_dim=64, depth=4, num_heads=4)
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
        step_size: float = 0.1,
        sparsity: float = 0.1,
        threshold: Threshold = "relu",
        skip: Skip = "input",
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
                CrateBlock(embed_dim, num_heads, head_dim, step_size, sparsity, threshold, skip, proj, drop=drop)
                for drop in layer_drop_rates(depth, attn_drop_rate, proj_drop_rate, drop_path_rate)
            ],
            embed_dim=embed_dim,
            num_classes=num_classes,
            global_pool=global_pool,
            norm_eps=1e-5,
            drop_rate=drop_rate,
            patch_drop_rate=patch_drop_rate,
        )
