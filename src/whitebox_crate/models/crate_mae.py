"""CRATE-MAE: CRATE that learns without labels. It completes images whose patches are mostly masked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..layers import (
    MSSA,
    ConvPatchEmbed,
    NormedProduct,
    layer_drop_rates,
    patchify,
    resample_pos_embed,
    sincos_pos_embed,
)
from ..layers.patch_embed import Size
from ._base import GlobalPool, ImageTransformer
from .crate import CrateBlock

NORM_EPS = 1e-6
PIXEL_EPS = 1e-6  # added to the variance of a patch
_DECODER = ("mask_token", "decoder_")  # prefixes of the decoder's parameters


@dataclass(frozen=True)
class Reconstruction:
    """The result of `CrateMae.reconstruct` for a batch.

    Attributes:
        loss: Mean squared error of the pixels of the removed patches, a scalar in float32 or float64.
        pred: The predicted pixels of every patch, (batch, rows * columns, patch height * patch width * in_chans), in
            the order of `whitebox_crate.layers.patchify`. With `norm_pix_loss` they are standardised in each patch.
        mask: (batch, rows * columns), bool; True where a patch was removed.
    """

    loss: Tensor
    pred: Tensor
    mask: Tensor


class CrateMaeDecoderBlock(nn.Module):
    """One layer of the decoder: it undoes the steps of an encoder layer in reverse order (arXiv 2404.02446).

    `h = A LN(z)`, `z' = h - MSSA(LN(h))`: A has no skip, and compression is subtracted.

    Args:
        dim: Width of a token; A, `linear`, is dim x dim.
        num_heads: Number of subspaces.
        head_dim: Dimension of a subspace; `dim // num_heads` if None.

    Shape:
        - Input: (batch, tokens, dim), any float dtype.
        - Output: same shape as the input.
    """

    def __init__(self, dim: int, num_heads: int, head_dim: int | None = None) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.linear = nn.Linear(dim, dim, bias=False)
        self.norm2 = nn.LayerNorm(dim)
        self.mssa = MSSA(dim, num_heads, head_dim)

    def normed_products(self) -> list[NormedProduct]:
        """Both norms."""
        return [NormedProduct(self, "norm1", self, "linear"), NormedProduct(self, "norm2", self.mssa, "qkv")]

    def forward(self, tokens: Tensor) -> Tensor:
        expanded: Tensor = self.linear(self.norm1(tokens))
        out: Tensor = expanded - self.mssa(self.norm2(expanded))
        return out


class CrateMae(ImageTransformer):
    """CRATE-MAE as released (arXiv 2404.02446). The encoder is the model; only `reconstruct` uses the decoder.

    Mask tokens join before the encoder, so the encoder sees all tokens. Positions are fixed sines and cosines:
    `pos_embed` is in the state dict but not trained. The released encoder has no head; `num_classes` adds one.

    Args:
        img_size: (height, width) or one number, pixels.
        patch_size: (height, width) or one number, pixels.
        in_chans: Channels of the image.
        num_classes: Number of classes; 0 for no head, as released.
        global_pool: "token", "avg" (patch tokens), "mean" (all tokens) or "".
        embed_dim: Width of a token, divisible by 4.
        depth: Number of layers of the encoder.
        num_heads: Number of subspaces of the encoder.
        head_dim: Dimension of a subspace, in encoder and decoder; the width divided by the number of heads if None.
        step_size: eta of ISTA.
        sparsity: lambda of ISTA.
        decoder_depth: Number of layers of the decoder; `depth` if None, 0 for a model that cannot reconstruct.
        decoder_num_heads: Number of subspaces of the decoder; `num_heads` if None.
        norm_pix_loss: Whether each patch of the target is standardised by its own mean and variance.
        dynamic_img_size: Whether to take images of any size that the patch divides.
        drop_rate, patch_drop_rate, proj_drop_rate, attn_drop_rate, drop_path_rate: See `Crate`; the decoder
            has no dropout.

    Shape:
        - Input: (batch, in_chans, height, width), float.
        - Output: (batch, embed_dim), or (batch, num_classes) with a head.

    Raises:
        InputError: If `embed_dim` is not divisible by 4, or `decoder_depth` is negative.
    """

    def __init__(
        self,
        img_size: Size = 224,
        patch_size: Size = 16,
        in_chans: int = 3,
        num_classes: int = 0,
        global_pool: GlobalPool = "token",
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        head_dim: int | None = None,
        step_size: float = 0.1,
        sparsity: float = 0.5,
        decoder_depth: int | None = None,
        decoder_num_heads: int | None = None,
        norm_pix_loss: bool = False,
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
                CrateBlock(embed_dim, num_heads, head_dim, step_size, sparsity, drop=drop)
                for drop in layer_drop_rates(depth, attn_drop_rate, proj_drop_rate, drop_path_rate)
            ],
            embed_dim=embed_dim,
            num_classes=num_classes,
            global_pool=global_pool,
            norm_eps=NORM_EPS,
            drop_rate=drop_rate,
            patch_drop_rate=patch_drop_rate,
        )
        self.norm_pix_loss = norm_pix_loss
        self.pos_embed.requires_grad_(False)
        if not self.pos_embed.is_meta:
            self.pos_embed.data.copy_(sincos_pos_embed(self.patch_embed.grid_size, embed_dim))
        layers = depth if decoder_depth is None else decoder_depth
        if layers < 0:
            raise InputError(f"decoder_depth must be at least 0, not {layers}")
        heads = num_heads if decoder_num_heads is None else decoder_num_heads
        patch_height, patch_width = self.patch_embed.patch_size
        self.mask_token: nn.Parameter | None = nn.Parameter(torch.empty(1, 1, embed_dim))
        nn.init.normal_(self.mask_token, std=0.02)
        self.decoder_blocks = nn.ModuleList(CrateMaeDecoderBlock(embed_dim, heads, head_dim) for _ in range(layers))
        self.decoder_norm: nn.Module = nn.LayerNorm(embed_dim, eps=NORM_EPS)
        self.decoder_pred: nn.Module = nn.Linear(embed_dim, patch_height * patch_width * in_chans)
        self._init_weights()
        if not layers:
            self._drop_decoder()

    def _init_weights(self) -> None:
        """Initial values of MAE (arXiv 2111.06377, appendix A.1): Xavier, the convolution as a Linear; A as in ISTA."""
        nn.init.normal_(self.cls_token, std=0.02)
        for module in self.modules():
            _init_projection(module)
        for module in self.modules():
            if isinstance(module, CrateMaeDecoderBlock):
                nn.init.kaiming_uniform_(module.linear.weight)

    def ignores_key(self, name: str) -> bool:
        """True for the decoder's weights if the model has no decoder."""
        return not self.decoder_blocks and name.startswith(_DECODER)

    def decoder_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters that only `reconstruct` uses: the mask token and the decoder."""
        return (parameter for name, parameter in self.named_parameters() if name.startswith(_DECODER))

    def new_head(self, num_classes: int) -> nn.Module:
        """See `ImageTransformer.new_head`."""
        return _init_projection(super().new_head(num_classes))

    def resample_positions(self, pos_embed: Tensor, old_grid: tuple[int, int], new_grid: tuple[int, int]) -> Tensor:
        """See `ImageTransformer.resample_positions`. It uses the rule of released CRATE-MAE, "scale"."""
        return resample_pos_embed(pos_embed, old_grid, new_grid, self.num_prefix_positions, rule="scale")

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """See `ImageTransformer.prune_intermediate_layers`. Removing the head removes the decoder too."""
        take = super().prune_intermediate_layers(indices, prune_norm, prune_head)
        if prune_head:
            self._drop_decoder()
        return take

    def _drop_decoder(self) -> None:
        self.mask_token = None
        self.decoder_blocks = nn.ModuleList()
        self.decoder_norm = self.decoder_pred = nn.Identity()

    def reconstruct(self, images: Tensor, mask_ratio: float = 0.75, noise: Tensor | None = None) -> Reconstruction:
        """Removes patches at random and predicts their pixels from the others.

        Args:
            images: (batch, in_chans, height, width), float.
            mask_ratio: Share of the patches to remove, in (0, 1]. Of n patches, `int(n * (1 - mask_ratio))` stay, and
                never all.
            noise: (batch, rows * columns), float: the patches with the smallest values stay. Uniform noise if None.

        Returns:
            Loss, prediction and mask.

        Raises:
            InputError: If `images`, `mask_ratio` or `noise` are not as described, or the model has no decoder.
        """
        if self.mask_token is None:
            raise InputError(
                "this model has no decoder to reconstruct with: make it with a decoder_depth above 0, and without "
                "features_only"
            )
        grid = self.grid_of(images)
        mask = _random_mask((images.shape[0], grid[0] * grid[1]), mask_ratio, noise, images.device)
        patches = self.patch_embed(images)
        tokens = self._add_cls_and_positions(
            torch.where(mask[..., None], self.mask_token.to(patches.dtype), patches), grid
        )
        # The last norm has one of these names; the other is not a norm.
        tokens = self.fc_norm(self.norm(self.run_layers(tokens, grid)))
        for block in self.decoder_blocks:
            tokens = self._run_block(block, tokens, grid)
        pred = self.decoder_pred(self.decoder_norm(tokens))[:, self.num_prefix_tokens :]

        target = patchify(images, self.patch_embed.patch_size)
        if self.norm_pix_loss:
            variance, mean = torch.var_mean(target, dim=-1, keepdim=True)
            target = (target - mean) / (variance + PIXEL_EPS).sqrt()
        precise = torch.promote_types(pred.dtype, torch.float32)  # a sum over a large batch overflows float16
        errors = (pred - target).to(precise).square().mean(dim=-1)
        return Reconstruction((errors * mask).sum() / mask.sum(), pred, mask)


def _random_mask(shape: tuple[int, int], mask_ratio: float, noise: Tensor | None, device: torch.device) -> Tensor:
    """The patches to remove, (batch, patches), bool; the same number in each sample."""
    if not 0 < mask_ratio <= 1:
        raise InputError(f"mask_ratio must be a share of the patches in (0, 1], not {mask_ratio!r}")
    if noise is None:
        noise = torch.rand(shape, device=device)
    if noise.shape != shape or not noise.is_floating_point():
        raise InputError(
            f"noise must have one float for each patch, here {shape}, not {noise.dtype} of shape {tuple(noise.shape)}"
        )
    kept = min(int(shape[1] * (1 - mask_ratio)), shape[1] - 1)
    rank = noise.argsort(dim=1, stable=True).argsort(dim=1)
    return rank >= kept


def _init_projection(module: nn.Module) -> nn.Module:
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.xavier_uniform_(module.weight.detach().flatten(1))  # shares the memory of the weight
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    return module
