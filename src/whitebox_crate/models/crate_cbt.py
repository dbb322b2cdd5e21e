"""CRATE below, CBT above: layers of MSSA, then layers of CBSA."""

from __future__ import annotations

from ..errors import InputError, is_whole
from ..layers import NormedPatchEmbed, layer_drop_rates
from ..layers.patch_embed import Size
from ._base import GlobalPool, ImageTransformer
from ._block import Block
from .cbt import CBTBlock
from .crate import CrateBlock


class CrateCBT(ImageTransformer):
    """A CRATE whose upper layers are CBT's.

    In a figure of maps by layer, the authors of CBSA show such a stack as cleaner than either network alone (arXiv
    2509.16875). Patches are embedded as in CRATE. Representatives start as averages of the patches in their own places:
    no published weights need the shift. No patch may be missing, so there is no `patch_drop_rate`.

    Args:
        img_size, patch_size, in_chans, num_classes, global_pool, embed_dim, depth, num_heads, head_dim: See `Crate`.
        cbt_depth: Number of CBT's layers, which come last; half of `depth`, rounded down, if None.
        step_size: eta of ISTA.
        sparsity: lambda of ISTA.
        representatives: (rows, columns) of their grid, or one number for both; see `CBSA`.
        dynamic_img_size, drop_rate, proj_drop_rate, drop_path_rate: See `Crate`.

    Shape:
        - Input: (batch, in_chans, height, width), float.
        - Output: (batch, num_classes).

    Raises:
        InputError: If `cbt_depth` is not from 0 to `depth`.
    """

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
        cbt_depth: int | None = None,
        step_size: float = 0.1,
        sparsity: float = 0.1,
        representatives: Size = 8,
        dynamic_img_size: bool = False,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        upper = depth // 2 if cbt_depth is None else cbt_depth
        if not is_whole(upper) or not 0 <= upper <= depth:
            raise InputError(f"cbt_depth must be from 0 to {depth}, the number of layers, not {cbt_depth!r}")
        blocks: list[Block] = []
        for layer, drop in enumerate(layer_drop_rates(depth, 0.0, proj_drop_rate, drop_path_rate)):
            sizes = (embed_dim, num_heads, head_dim, step_size, sparsity)
            below = layer < depth - upper
            blocks.append(
                CrateBlock(*sizes, drop=drop) if below else CBTBlock(*sizes, "patches", representatives, drop=drop)
            )
        super().__init__(
            NormedPatchEmbed(embed_dim, img_size, patch_size, in_chans, dynamic_img_size),
            blocks,
            embed_dim=embed_dim,
            num_classes=num_classes,
            global_pool=global_pool,
            norm_eps=1e-5,
            drop_rate=drop_rate,
        )
