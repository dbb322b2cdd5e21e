"""CBT: CRATE with contract-and-broadcast attention in place of MSSA, and a convolutional stem. Linear in tokens."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..errors import InputError
from ..layers import (
    CBSA,
    ISTA,
    NO_DROP,
    ConvStem,
    DropPath,
    DropRates,
    FoldedISTA,
    NormedProduct,
    layer_drop_rates,
)
from ..layers.cbsa import Grid, Pool, check_grid
from ..layers.patch_embed import Size, to_pair
from ._base import GlobalPool, ImageTransformer
from ._block import Block
from ._wrappers import unwrap


class CBTBlock(Block):
    """CBSA compresses through representatives, ISTA codes sparsely (arXiv 2509.16875).

    `h = z + CBSA(LN(z))`, `z' = ISTA(LN(h))`.

    Args:
        dim: Width of a token.
        num_heads: Number of subspaces.
        head_dim: Dimension of a subspace; `dim // num_heads` if None.
        step_size: eta of ISTA.
        sparsity: lambda of ISTA.
        pool: How the representatives start, "released" or "patches"; see `RepresentativePool`.
        representatives: (rows, columns) of their grid, or one number for both.
        drop: Dropout rates.

    Shape:
        - Input: (batch, 1 + rows * columns, dim), any float dtype; and the grid (rows, columns), or None for a square
          grid.
        - Output: same shape as the tokens; not negative.
    """

    takes_grid = True
    skips_coding = False

    def __init__(
        self,
        dim: int,
        num_heads: int,
        head_dim: int | None = None,
        step_size: float = 0.1,
        sparsity: float = 0.1,
        pool: Pool = "released",
        representatives: Size = 8,
        drop: DropRates = NO_DROP,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.cbsa = CBSA(dim, num_heads, head_dim, pool, representatives, drop.proj)
        self.norm2 = nn.LayerNorm(dim)
        self.ista: ISTA | FoldedISTA = ISTA(dim, step_size, sparsity)
        self.drop_path = DropPath(drop.path)

    @property
    def attention(self) -> CBSA:
        """CBSA."""
        return self.cbsa

    def normed_products(self) -> list[NormedProduct]:
        """Both norms."""
        return [NormedProduct(self, "norm1", self.cbsa, "qkv"), NormedProduct(self, "norm2", self, "ista")]

    def forward(self, tokens: Tensor, grid: Grid | None = None) -> Tensor:
        compressed = tokens + self.drop_path(self.cbsa(self.norm1(tokens), grid))
        out: Tensor = self.ista(self.norm2(compressed))
        return out


class CBT(ImageTransformer):
    """CBT as released (arXiv 2509.16875): convolutional stem, [CLS], positions, `depth` layers, LayerNorm, Linear.

    Time and memory grow with the number of patches, not with its square. Representatives are averages over the whole
    grid, so no patch may be missing and `patch_drop_rate` must be 0.

    Args:
        img_size: (height, width) or one number, pixels; a square image with the released pooling.
        patch_size: A power of two, pixels.
        in_chans: Channels of the image.
        num_classes: Number of classes; 0 for no head.
        global_pool: "token" as released, "avg" (patch tokens), "mean" (all tokens) or "".
        embed_dim: Width of a token; the stem starts with `embed_dim / 8` channels at patch 16, `embed_dim / 4` at 8.
        depth: Number of layers.
        num_heads: Number of subspaces.
        head_dim: Dimension of a subspace; `embed_dim // num_heads` if None.
        step_size: eta of ISTA.
        sparsity: lambda of ISTA.
        pool: How representatives start: "released" for the published weights (shifted by one token, square grids only),
            or "patches" for all grids.
        representatives: (rows, columns) of their grid, or one number for both.
        dynamic_img_size: Whether to take images of any size that the patch divides.
        drop_rate, patch_drop_rate, proj_drop_rate, drop_path_rate: See `Crate`; `patch_drop_rate` is 0.

    Shape:
        - Input: (batch, in_chans, height, width), float.
        - Output: (batch, num_classes).

    Raises:
        InputError: If the image is not square with the released pooling, or `patch_drop_rate` is not 0.
    """

    first_conv = "patch_embed.proj.0.0"

    def __init__(
        self,
        img_size: Size = 224,
        patch_size: Size = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: GlobalPool = "token",
        embed_dim: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        head_dim: int | None = None,
        step_size: float = 0.1,
        sparsity: float = 0.1,
        pool: Pool = "released",
        representatives: Size = 8,
        dynamic_img_size: bool = False,
        drop_rate: float = 0.0,
        patch_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        if patch_drop_rate:
            raise InputError(
                f"patch_drop_rate must be 0 for a CBT, not {patch_drop_rate!r}: its representatives are averages over "
                "the whole grid; use drop_path_rate or proj_drop_rate"
            )
        stem = ConvStem(embed_dim, img_size, patch_size, in_chans, dynamic_img_size)
        check_grid(pool, stem.grid_size)
        super().__init__(
            stem,
            [
                CBTBlock(embed_dim, num_heads, head_dim, step_size, sparsity, pool, representatives, drop=drop)
                for drop in layer_drop_rates(depth, 0.0, proj_drop_rate, drop_path_rate)
            ],
            embed_dim=embed_dim,
            num_classes=num_classes,
            global_pool=global_pool,
            norm_eps=1e-5,
            drop_rate=drop_rate,
        )

    @property
    def _pool(self) -> Pool:
        first: Any = unwrap(self.blocks[0])
        kind: Pool = first.cbsa.pool.kind
        return kind

    @property
    def square_images(self) -> bool:
        """Whether patches must fill a square grid; the released pooling needs it."""
        return self._pool == "released"

    def set_input_size(self, img_size: Size | None = None, patch_size: Size | None = None) -> None:
        """See `ImageTransformer.set_input_size`.

        Raises:
            InputError: See there; also if the image is not square with the released pooling.
        """
        if img_size is not None:
            check_grid(self._pool, self.patch_embed.grid_of(*to_pair(img_size)))
        super().set_input_size(img_size, patch_size)
