"""ToST: its layers compress tokens by their statistics (TSSA); then [CLS] joins, in class attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..layers import (
    MLP,
    NO_DROP,
    TSSA,
    ClassAttention,
    ConvStem,
    DropPath,
    DropRates,
    FourierPosEmbed,
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


class ToSTBlock(Block):
    """A step on the variational form of the coding rate (arXiv 2412.17810, section 3), then an MLP.

    `h = z + g1 * TSSA(LN(z))`, `z' = h + g2 * MLP(LN(h))` as released, with LayerScale g1 and g2.

    Args:
        dim: Width of a token.
        num_heads: Number of subspaces.
        head_dim: Dimension of a subspace; `dim // num_heads` if None.
        mlp_ratio: Hidden width of the MLP over `dim`.
        qkv_bias: Whether projections on the subspaces have a bias.
        init_values: Initial value of LayerScale's numbers.
        drop: Dropout rates.

    Shape:
        - Input: (batch, tokens, dim), any float dtype; patches only.
        - Output: same shape as the input.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        head_dim: int | None = None,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        init_values: float = 1.0,
        drop: DropRates = NO_DROP,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.tssa = TSSA(dim, num_heads, head_dim, qkv_bias, drop)
        self.ls1 = LayerScale(dim, init_values)
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = MLP(dim, int(dim * mlp_ratio), drop.proj)
        self.ls2 = LayerScale(dim, init_values)
        self.drop_path = DropPath(drop.path)

    @property
    def attention(self) -> TSSA:
        """TSSA."""
        return self.tssa

    def normed_products(self) -> list[NormedProduct | ScaledProduct]:
        """Both norms and both LayerScales. (Folding turns LayerScales into identities.)"""
        norms = [NormedProduct(self, "norm1", self.tssa, "qkv"), NormedProduct(self, "norm2", self.mlp, "fc1")]
        scales = [ScaledProduct(self, "ls1", self.tssa, "proj"), ScaledProduct(self, "ls2", self.mlp, "fc2")]
        return [*norms, *scales]

    def forward(self, tokens: Tensor) -> Tensor:
        compressed = tokens + self.drop_path(self.ls1(self.tssa(self.norm1(tokens))))
        out: Tensor = compressed + self.drop_path(self.ls2(self.mlp(self.norm2(compressed))))
        return out


class ClassAttentionBlock(Block):
    """Class attention and an MLP for [CLS] alone, as in XCiT (arXiv 2106.09681) and released ToST.

    With [CLS] first and then the patches, `y = LN(z)`, `h = z + g1 * [ClassAttention(y), y of the patches]`,
    `x = LN(h)` and `z' = x + [g2 * MLP(x of CLS), x of the patches]`. So the second residual starts after the norm, and
    patches are doubled. This layer is not derived from an objective.

    Args:
        dim, num_heads, head_dim, mlp_ratio, qkv_bias, init_values, drop: See `ToSTBlock`.
        tokens_norm: Whether the second norm applies to all tokens (as in all registered models) or to [CLS] alone.

    Shape:
        - Input: (batch, tokens, dim), any float dtype, [CLS] first.
        - Output: same shape as the input.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        head_dim: int | None = None,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        init_values: float = 1.0,
        tokens_norm: bool = True,
        drop: DropRates = NO_DROP,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.attn = ClassAttention(dim, num_heads, head_dim, qkv_bias, drop)
        self.ls1 = LayerScale(dim, init_values)
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = MLP(dim, int(dim * mlp_ratio), drop.proj)
        self.ls2 = LayerScale(dim, init_values)
        self.tokens_norm = tokens_norm

    @property
    def attention(self) -> ClassAttention:
        """Class attention."""
        return self.attn

    def normed_products(self) -> list[NormedProduct | ScaledProduct]:
        """None, because the output of both norms is also added to the tokens."""
        return []

    def forward(self, tokens: Tensor) -> Tensor:
        normed = self.norm1(tokens)
        attended = tokens + self.ls1(torch.cat([self.attn(normed), normed[:, 1:]], dim=1))
        cls_token, patches = self.norm2(attended).tensor_split([1], dim=1)
        if not self.tokens_norm:
            patches = attended[:, 1:]
        return torch.cat([cls_token + self.ls2(self.mlp(cls_token)), 2 * patches], dim=1)


class ToST(ImageTransformer):
    """ToST as released (arXiv 2412.17810): convolutions, Fourier positions, layers of TSSA, two of class attention.

    Only patches pass `blocks`. Then [CLS] joins, and attends to them in `cls_attn_blocks`. `layers`, and so `capture`,
    counts both, one after the other. Feature maps (`forward_intermediates`, `features_only`) come from `blocks`, as in
    timm's XCiT. All grids use the same positions, without resampling. In training, the released code returns the logits
    twice, as a pair; here they are returned once.

    Args:
        img_size: (height, width) or one number, pixels.
        patch_size: A power of two, pixels; 16 and 8 as released.
        in_chans: Channels of the image.
        num_classes: Number of classes; 0 for no head.
        global_pool: "token" as released, "avg" (patch tokens), "mean" (all tokens) or "".
        embed_dim: Width of a token.
        depth: Number of layers with TSSA.
        num_heads: Number of subspaces, and of class attention's heads.
        head_dim: Dimension of a subspace; `embed_dim // num_heads` if None.
        mlp_ratio: Hidden width of an MLP over `embed_dim`.
        qkv_bias: Whether projections on the subspaces and in class attention have a bias.
        init_values: Initial value of LayerScale's numbers (`eta` as released: 1 at a depth of 12, 1e-5 at 24).
        tokens_norm: See `ClassAttentionBlock`.
        cls_attn_layers: Number of layers with class attention, at least 1.
        dynamic_img_size: Whether to take images of any size that the patch divides.
        drop_rate: Dropout rate of the head's input. All rates here are for training only.
        proj_drop_rate: Dropout rate of output projections and MLPs.
        attn_drop_rate: Dropout rate of TSSA's statistics and of class attention.
        drop_path_rate: Share of the samples that skip a residual branch, the same in all layers with TSSA.

    Shape:
        - Input: (batch, in_chans, height, width), float.
        - Output: (batch, num_classes).

    Raises:
        InputError: See `ImageTransformer` and `ConvStem`; also if there is no class attention.
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
        num_heads: int = 8,
        head_dim: int | None = None,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        init_values: float = 1.0,
        tokens_norm: bool = True,
        cls_attn_layers: int = 2,
        dynamic_img_size: bool = False,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        if cls_attn_layers < 1:
            raise InputError(
                f"cls_attn_layers must be at least 1, so that [CLS] sees the patches, not {cls_attn_layers}"
            )
        sizes: dict[str, Any] = {
            "dim": embed_dim,
            "num_heads": num_heads,
            "head_dim": head_dim,
            "mlp_ratio": mlp_ratio,
            "qkv_bias": qkv_bias,
            "init_values": init_values,
        }
        super().__init__(
            ConvStem(embed_dim, img_size, patch_size, in_chans, dynamic_img_size),
            [
                ToSTBlock(**sizes, drop=drop)
                for drop in layer_drop_rates(depth, attn_drop_rate, proj_drop_rate, drop_path_rate, constant=True)
            ],
            embed_dim=embed_dim,
            num_classes=num_classes,
            global_pool=global_pool,
            norm_eps=NORM_EPS,
            drop_rate=drop_rate,
            pos_embed=FourierPosEmbed(embed_dim),
        )
        self.cls_attn_blocks = nn.ModuleList(
            ClassAttentionBlock(**sizes, tokens_norm=tokens_norm, drop=DropRates(attn_drop_rate, proj_drop_rate))
            for _ in range(cls_attn_layers)
        )
        self._init_weights()

    def _init_weights(self) -> None:
        """As released: truncated normal of 0.02 for [CLS] and Linear weights, zero biases, PyTorch's convolutions."""
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        for module in self.modules():
            init_linear(module)

    def new_head(self, num_classes: int) -> nn.Module:
        """See `ImageTransformer.new_head`."""
        return init_linear(super().new_head(num_classes))

    def _add_cls_and_positions(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """Adds the positions; [CLS] joins later."""
        positioned: Tensor = patches + self.pos_embed(grid)
        return positioned

    def layers(self) -> list[nn.Module]:
        """`blocks`, then `cls_attn_blocks`."""
        return [*self.blocks, *self.cls_attn_blocks]

    def joined(self, layer: int, tokens: Tensor) -> Tensor:
        """Puts [CLS] before the patches at the first layer of class attention."""
        if layer != len(self.blocks) or not self.cls_attn_blocks:
            return tokens
        cls_token = self.cls_token.expand(tokens.shape[0], -1, -1)  # len() would fix the batch size in torch.export
        return torch.cat([cls_token.to(tokens.dtype), tokens], dim=1)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """See `ImageTransformer.prune_intermediate_layers`. Removing the head removes class attention and [CLS]."""
        take = super().prune_intermediate_layers(indices, prune_norm, prune_head)
        if prune_head:
            self.cls_attn_blocks = nn.ModuleList()
            self.num_prefix_tokens = 0
        return take

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay must leave alone."""
        return {"cls_token"}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """See `ImageTransformer.group_matcher`. As in timm's XCiT, the last norm comes after class attention."""
        last = r"^cls_attn_blocks\.(\d+)"
        return {
            "stem": super().group_matcher(coarse)["stem"],
            "blocks": r"^blocks\.(\d+)",
            "cls_attn_blocks": last if coarse else [(last, None), (r"^norm", (99999,))],
        }
