"""Patch embeddings: cut images into patches, and turn each patch into a token."""

from __future__ import annotations

from typing import TypeAlias

import torch
from einops import rearrange
from torch import Tensor, nn

from ..errors import InputError, is_whole
from .normed_product import NormedProduct

Size: TypeAlias = int | tuple[int, int]


def to_pair(size: Size) -> tuple[int, int]:
    """(height, width) from one number or a pair.

    Raises:
        InputError: If `size` is neither, or not positive.
    """
    pair = (size, size) if is_whole(size) else size
    is_pair = isinstance(pair, tuple | list) and len(pair) == 2
    if not is_pair or any(not is_whole(side) or side < 1 for side in pair):
        raise InputError(f"a size must be a positive int or a pair (height, width), not {size!r:.50}")
    return int(pair[0]), int(pair[1])


def patchify(images: Tensor, patch_size: Size) -> Tensor:
    """The pixels of each patch as one row, in the order (row in patch, column in patch, channel).

    Args:
        images: (batch, channels, height, width), any dtype.
        patch_size: (height, width) or one number, pixels.

    Returns:
        (batch, rows * columns, patch height * patch width * channels), row by row.

    Raises:
        InputError: If `images` do not have four dimensions, or the patch does not divide the image.

    Example:
        >>> patchify(torch.rand(2, 3, 32, 48), patch_size=16).shape
        torch.Size([2, 6, 768])
    """
    p, q = to_pair(patch_size)
    if images.ndim != 4 or images.shape[2] % p or images.shape[3] % q:
        raise InputError(
            f"expected (batch, channels, height, width) that patches of {p} x {q} divide, got {tuple(images.shape)}"
        )
    return rearrange(images, "b c (h p) (w q) -> b (h w) (p q c)", p=p, q=q)


def unpatchify(patches: Tensor, patch_size: Size, grid: tuple[int, int]) -> Tensor:
    """Puts patches together to images: the inverse of `patchify`.

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
    """The base of all patch embeddings: sizes, and the check of images against them.

    Args:
        img_size: (height, width) or one number, pixels.
        patch_size: (height, width) or one number, pixels.
        in_chans: Channels of the image.
        dynamic_img_size: Whether to take images of any size that the patch divides.

    Raises:
        InputError: If the patch does not divide the image.
    """

    def __init__(
        self, img_size: Size = 224, patch_size: Size = 16, in_chans: int = 3, dynamic_img_size: bool = False
    ) -> None:
        super().__init__()
        if in_chans < 1:
            raise InputError(f"in_chans must be at least 1, not {in_chans}")
        self.patch_size = to_pair(patch_size)
        self.in_chans = in_chans
        self.dynamic_img_size = dynamic_img_size
        self.set_input_size(img_size)

    def set_input_size(self, img_size: Size) -> None:
        """Changes the expected image size."""
        height, width = to_pair(img_size)
        self.grid_size = self.grid_of(height, width)
        self.img_size = (height, width)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the parameters, which images must have."""
        return next((p.dtype for p in self.parameters() if p.is_floating_point()), torch.get_default_dtype())

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
            InputError: If type, dtype, shape or channels do not fit this embedding.
        """
        if not isinstance(images, Tensor):
            raise InputError(
                f"expected a tensor of images, got {type(images).__name__}; whitebox_crate.create_transform makes one"
            )
        if not images.is_floating_point():
            raise InputError(
                f"expected normalised float images, got {images.dtype}; whitebox_crate.create_transform makes them "
                "from pixels"
            )
        dtype = self.dtype
        if images.dtype != dtype and not torch.is_autocast_enabled(images.device.type):
            raise InputError(
                f"the model computes in {dtype}, but the images are {images.dtype}: call images.to({dtype})"
            )
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
        - Output: (batch, rows * columns, embed_dim), row by row.
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

    def normed_products(self) -> list[NormedProduct]:
        """The patches' norm and their projection."""
        return [NormedProduct(self, "norm1", self, "proj")]

    def forward(self, images: Tensor) -> Tensor:
        self.check(images)
        tokens: Tensor = self.norm2(self.proj(self.norm1(patchify(images, self.patch_size))))
        return tokens


class ConvPatchEmbed(PatchEmbed):
    """ViT's embedding: one convolution whose stride is its kernel (timm's names).

    Shape:
        - Input: (batch, in_chans, height, width), any float dtype.
        - Output: (batch, rows * columns, embed_dim), row by row.
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
