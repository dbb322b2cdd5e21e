"""Patches to tokens, and position embeddings for grids of any size."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..errors import InputError, UnknownNameError

Size: TypeAlias = int | tuple[int, int]
Resampling = Literal["size", "scale"]


def to_pair(size: Size) -> tuple[int, int]:
    """(height, width) from one number or a pair.

    Raises:
        InputError: If it is neither, or not positive.
    """
    pair = (size, size) if isinstance(size, int) else size
    is_pair = isinstance(pair, tuple | list) and len(pair) == 2
    if not is_pair or any(type(side) is not int or side < 1 for side in pair):
        raise InputError(f"a size is a positive int or a pair (height, width) of them, not {size!r}")
    return pair[0], pair[1]


def patchify(images: Tensor, patch_size: Size) -> Tensor:
    """The pixels of each patch as one row, in the order (row in patch, column in patch, channel).

    Args:
        images: (batch, channels, height, width), any dtype.
        patch_size: (height, width) or one number, pixels.

    Returns:
        (batch, rows * columns, patch height * patch width * channels), rows of the grid first.

    Raises:
        InputError: If the rank is another, or the patch does not divide the image.
    """
    p, q = to_pair(patch_size)
    if images.ndim != 4 or images.shape[2] % p or images.shape[3] % q:
        raise InputError(f"images of shape {tuple(images.shape)} are no batch that patches of {p} x {q} divide")
    return rearrange(images, "b c (h p) (w q) -> b (h w) (p q c)", p=p, q=q)


def unpatchify(patches: Tensor, patch_size: Size, grid: tuple[int, int]) -> Tensor:
    """The images that `patchify` took apart.

    Args:
        patches: (batch, rows * columns, patch height * patch width * channels), any dtype.
        patch_size: (height, width) or one number, pixels.
        grid: (rows, columns).

    Returns:
        (batch, channels, height, width).

    Raises:
        InputError: If `patches` has another shape.
    """
    p, q = to_pair(patch_size)
    if patches.ndim != 3 or patches.shape[1] != grid[0] * grid[1] or patches.shape[2] % (p * q):
        raise InputError(
            f"patches of shape {tuple(patches.shape)} do not fill a grid of {grid[0]} x {grid[1]} with {p} x {q} pixels"
        )
    return rearrange(patches, "b (h w) (p q c) -> b c (h p) (w q)", h=grid[0], w=grid[1], p=p, q=q)


class PatchEmbed(nn.Module):
    """What all patch embeddings share: the sizes, and the check of the image against them.

    Args:
        img_size: (height, width) or one number, pixels.
        patch_size: (height, width) or one number, pixels.
        in_chans: Channels of the image.
        dynamic_img_size: Whether images of any size divisible by the patch are taken.

    Raises:
        InputError: If the patch does not divide the image.
    """

    def __init__(
        self, img_size: Size = 224, patch_size: Size = 16, in_chans: int = 3, dynamic_img_size: bool = False
    ) -> None:
        super().__init__()
        if in_chans < 1:
            raise InputError(f"in_chans is at least 1, not {in_chans}")
        self.patch_size = to_pair(patch_size)
        self.in_chans = in_chans
        self.dynamic_img_size = dynamic_img_size
        self.set_input_size(img_size)

    def set_input_size(self, img_size: Size) -> None:
        """Makes this the image size that is expected from now on."""
        height, width = to_pair(img_size)
        self.grid_size = self.grid_of(height, width)
        self.img_size = (height, width)

    @property
    def num_patches(self) -> int:
        """Number of patches of an image of the expected size."""
        return self.grid_size[0] * self.grid_size[1]

    def grid_of(self, height: int, width: int) -> tuple[int, int]:
        """The patch grid (rows, columns) of an image of this size in pixels.

        Raises:
            InputError: If the patch does not divide the image.
        """
        patch_height, patch_width = self.patch_size
        if height % patch_height or width % patch_width:
            near = (
                max(1, round(height / patch_height)) * patch_height,
                max(1, round(width / patch_width)) * patch_width,
            )
            raise InputError(
                f"an image of {height} x {width} is not divisible by patches of {patch_height} x {patch_width}; "
                f"resize it, for example to {near[0]} x {near[1]}"
            )
        return height // patch_height, width // patch_width

    def check(self, images: Tensor) -> tuple[int, int]:
        """Checks a batch of images and returns its patch grid (rows, columns).

        Raises:
            InputError: If the rank, the channels or the size are not those of this embedding.
        """
        if images.ndim != 4 or images.shape[1] != self.in_chans:
            raise InputError(
                f"expected images of shape (batch, {self.in_chans}, height, width), got {tuple(images.shape)}; "
                f"the model takes {self.in_chans} channels (in_chans)"
            )
        height, width = images.shape[-2:]
        if not self.dynamic_img_size and (height, width) != self.img_size:
            raise InputError(
                f"expected images of {self.img_size[0]} x {self.img_size[1]}, got {height} x {width}; resize them, "
                f"call model.set_input_size(({height}, {width})), or create the model with dynamic_img_size=True"
            )
        return self.grid_of(height, width)


class NormedPatchEmbed(PatchEmbed):
    """CRATE's embedding: flatten in the order (row, column, channel), LayerNorm, Linear, LayerNorm.

    Shape:
        - Input: (batch, in_chans, height, width), any float dtype.
        - Output: (batch, rows * columns, embed_dim), rows of the grid first.
    """

    def __init__(
        self,
        embed_dim: int,
        img_size: Size = 224,
        patch_size: Size = 16,
        in_chans: int = 3,
        dynamic_img_size: bool = False,
    ) -> None:
        super().__init__(img_size, patch_size, in_chans, dynamic_img_size)
        patch_dim = self.patch_size[0] * self.patch_size[1] * in_chans
        self.norm1 = nn.LayerNorm(patch_dim)
        self.proj = nn.Linear(patch_dim, embed_dim)
        self.norm2 = nn.LayerNorm(embed_dim)

    def forward(self, images: Tensor) -> Tensor:
        self.check(images)
        tokens: Tensor = self.norm2(self.proj(self.norm1(patchify(images, self.patch_size))))
        return tokens


class ConvPatchEmbed(PatchEmbed):
    """ViT's embedding: one convolution whose stride is its kernel (timm's names).

    Shape:
        - Input: (batch, in_chans, height, width), any float dtype.
        - Output: (batch, rows * columns, embed_dim), rows of the grid first.
    """

    def __init__(
        self,
        embed_dim: int,
        img_size: Size = 224,
        patch_size: Size = 16,
        in_chans: int = 3,
        dynamic_img_size: bool = False,
    ) -> None:
        super().__init__(img_size, patch_size, in_chans, dynamic_img_size)
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel_size=self.patch_size, stride=self.patch_size)

    def forward(self, images: Tensor) -> Tensor:
        self.check(images)
        features: Tensor = self.proj(images)
        return rearrange(features, "b d h w -> b (h w) d")


def sincos_pos_embed(grid: tuple[int, int], dim: int) -> Tensor:
    """A fixed position embedding: sines and cosines of the place in the grid (arXiv 2111.06377, as MAE has it).

    The first half of the channels tells the column, the second the row; a half is the sines of the place times
    `10000^(-k / (dim / 4))` for k = 0, 1, ..., dim / 4 - 1, then the cosines.

    Args:
        grid: (rows, columns).
        dim: Width of a token.

    Returns:
        (1, 1 + rows * columns, dim), default dtype, zero for [CLS]; computed in double precision.

    Raises:
        InputError: If `dim` is not divisible by 4.
    """
    if dim % 4:
        raise InputError(f"a sine-cosine position embedding has a width divisible by 4, not {dim}")
    rows, columns = grid
    frequencies = 10000.0 ** (-4 * np.arange(dim // 4) / dim)

    def along(side: int) -> np.ndarray[Any, Any]:
        angles = np.outer(np.arange(side), frequencies)
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)

    patches = np.concatenate([np.tile(along(columns), (rows, 1)), np.repeat(along(rows), columns, axis=0)], axis=1)
    table = np.concatenate([np.zeros((1, dim)), patches])
    return torch.tensor(table[None], dtype=torch.get_default_dtype())


def resample_pos_embed(
    pos_embed: Tensor,
    old_grid: tuple[int, int],
    new_grid: tuple[int, int],
    num_prefix_tokens: int = 1,
    rule: Resampling = "size",
) -> Tensor:
    """Resamples a position embedding to another patch grid, bicubic.

    Args:
        pos_embed: (1, num_prefix_tokens + rows * columns, dim).
        old_grid: (rows, columns) of `pos_embed`.
        new_grid: (rows, columns) wanted.
        num_prefix_tokens: Leading rows that belong to no patch and are kept.
        rule: "size" resamples to the target size, with antialias, as timm does; "scale" by the factors
            `(new + 0.1) / old` without antialias, as DINO and CRATE-MAE were released.

    Returns:
        (1, num_prefix_tokens + new rows * new columns, dim), same dtype; `pos_embed` itself if the grid is the same.

    Raises:
        InputError: If `pos_embed` does not have the length that `old_grid` says.
        UnknownNameError: If `rule` is neither of the two.
    """
    if rule not in get_args(Resampling):
        raise UnknownNameError.of("rule of resampling", rule, get_args(Resampling))
    if pos_embed.shape[1] != num_prefix_tokens + old_grid[0] * old_grid[1]:
        raise InputError(
            f"a position embedding of shape {tuple(pos_embed.shape)} does not hold {num_prefix_tokens} prefix tokens "
            f"and a grid of {old_grid[0]} x {old_grid[1]}"
        )
    # A size that torch.export leaves open is not compared: the program would be bound to the outcome.
    if not any(isinstance(side, torch.SymInt) for side in new_grid) and old_grid == new_grid:
        return pos_embed
    prefix, patches = pos_embed[:, :num_prefix_tokens], pos_embed[:, num_prefix_tokens:]
    precise = patches.to(torch.promote_types(patches.dtype, torch.float32))
    image = rearrange(precise, "1 (h w) d -> 1 d h w", h=old_grid[0])
    if rule == "size":
        image = F.interpolate(image, size=new_grid, mode="bicubic", antialias=True, align_corners=False)
    else:
        image = _interpolate_by_scale(image, new_grid)
    resampled = rearrange(image, "1 d h w -> 1 (h w) d").to(pos_embed.dtype)
    return torch.cat([prefix, resampled], dim=1)


def _interpolate_by_scale(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Bicubic interpolation of (1, channels, height, width) at the factors (new + 0.1) / old; none at the same size.

    As `F.interpolate` does it, whose factors torch.export would bind to one size.
    """
    old_height, old_width = image.shape[-2:]
    height, width = (torch.full((), side, dtype=image.dtype, device=image.device) for side in size)
    offset = 0.1 * ((height != old_height) | (width != old_width)).to(image.dtype)
    rows, columns = (torch.arange(side, dtype=image.dtype, device=image.device) for side in size)
    down = _cubic_weights(rows, old_height, (height + offset) / old_height)
    across = _cubic_weights(columns, old_width, (width + offset) / old_width)
    return down @ image @ across.mT


def _cubic_weights(places: Tensor, old_side: int, factor: Tensor) -> Tensor:
    """(new side, old side): how much each old cell gives to each new one, by Keys' kernel with a = -0.75.

    The old cells at the border stand for those beyond it.
    """
    centres = (places[:, None] + 0.5) / factor - 0.5
    taps = centres.floor() + torch.arange(-1, 3, device=places.device)
    near = (centres - taps).abs()
    inner = (1.25 * near - 2.25) * near**2 + 1
    outer = ((-0.75 * near + 3.75) * near - 6) * near + 3
    none = torch.zeros(places.shape[0], old_side, dtype=places.dtype, device=places.device)
    return none.scatter_add(1, taps.clamp(0, old_side - 1).long(), torch.where(near <= 1, inner, outer))
