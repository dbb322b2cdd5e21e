"""Images of any kind as pixels, and pixels as tensors: (pixels / 255 - mean) / std."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, Union

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError, is_finite, require
from ..images import to_rgb
from ..layers.patch_embed import Size, to_pair
from ..pretrained_cfg import IMAGENET_MEAN, IMAGENET_STD

if TYPE_CHECKING:
    from PIL.Image import Image

AnyImage: TypeAlias = Union["Image", np.ndarray[Any, Any], Tensor]

MOST_PIXELS = 1 << 26  # most of a resized image


def image_to_tensor(
    image: AnyImage,
    *,
    size: Size | None = None,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> Tensor:
    """Turns one whole image into a tensor: (pixels / 255 - mean) / std. Nothing is cut off.

    Args:
        image: A Pillow image of any mode; uint8 (height, width, 3) in numpy; or uint8 in [0, 255] or float in
            [0, 1], (3, height, width), in torch.
        size: (height, width) or one number, pixels. Pillow's antialiased bicubic filter resizes the image to it,
            whatever the proportions. Float tensors are not resized.
        mean: Mean of each channel, of images scaled to [0, 1].
        std: Standard deviation of each channel, likewise.

    Returns:
        (3, height, width), float32, on the device of a tensor, else on the CPU. Stack them for a batch.

    Raises:
        InputError: If the image is none of these, or has a value out of range.
        MissingExtraError: If Pillow is needed and not installed.
    """
    check_statistics(mean, std, channels=3)
    wanted = None if size is None else to_pair(size)
    return normalised(image, lambda height, width: wanted or (height, width), "bicubic", mean, std)


def normalised(
    image: AnyImage,
    resized: Callable[[int, int], tuple[int, int]],
    interpolation: str,
    mean: Sequence[float],
    std: Sequence[float],
    crop: tuple[int, int] | None = None,
) -> Tensor:
    """(pixels / 255 - mean) / std of an image that is resized to `resized(its size)`, with as many channels as means.

    `crop` is the (height, width) to take from the middle of the resized image. The rest never becomes floats.
    Float tensors already hold pixels / 255, and are not resized.
    """
    if isinstance(image, Tensor) and image.is_floating_point():
        pixels = _check_unit_range(image, channels=len(mean))
        size = resized(*pixels.shape[1:])
        top, left, height, width = _middle(size, crop)
        if size != pixels.shape[1:]:
            raise InputError(
                f"float tensors are not resized, but {tuple(pixels.shape[1:])} would have to become {size}; resize it "
                "yourself, or give uint8 pixels: (255 * image).round().byte()"
            )
        pixels = pixels[:, top : top + height, left : left + width]
    else:
        pillow: Any = require("PIL.Image", extra="images")
        photo = to_pillow(image)
        if len(mean) == 1:
            photo = photo.convert("L")
        size = resized(photo.height, photo.width)
        top, left, height, width = _middle(size, crop)
        photo = photo.resize(size[::-1], pillow.Resampling[interpolation.upper()])
        array = np.array(photo.crop((left, top, left + width, top + height))).reshape(height, width, len(mean))
        pixels = torch.from_numpy(array).permute(2, 0, 1).float() / 255
    offset, scale = (pixels.new_tensor(values).view(-1, 1, 1) for values in (mean, std))
    # On the CPU if Pillow resized: accelerators round differently.
    scaled = ((pixels - offset) / scale).contiguous()
    return scaled.to(image.device) if isinstance(image, Tensor) else scaled


def _middle(size: tuple[int, int], crop: tuple[int, int] | None) -> tuple[int, int, int, int]:
    """Top, left, height and width of a crop from the middle of an image of this (height, width)."""
    height, width = crop or size
    # Python rounds halves to even, and so do the evaluations.
    return round((size[0] - height) / 2), round((size[1] - width) / 2), height, width


def to_pillow(image: Any) -> Image:
    """Any 8-bit image as a Pillow image in mode RGB.

    Args:
        image: A Pillow image of any mode; uint8 (height, width, 3) in numpy; or uint8 (3, height, width) in torch.

    Raises:
        InputError: If it is none of these, or has no pixels.
        MissingExtraError: If Pillow is not installed.
    """
    pillow: Any = require("PIL.Image", extra="images")
    if isinstance(image, Tensor):
        image = image.detach().cpu().numpy()
        image = image.transpose(1, 2, 0) if image.ndim == 3 else image
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
            raise InputError(
                "expected uint8 pixels of shape (height, width, 3) in numpy or (3, height, width) in torch; "
                f"got {image.dtype} of (height, width, channels) {image.shape}"
                + ("; turn floats in [0, 1] into uint8: (255 * values).round()" if image.dtype.kind == "f" else "")
            )
        image = pillow.fromarray(np.ascontiguousarray(image))
    elif not isinstance(image, pillow.Image):
        raise InputError(
            f"expected a Pillow image, a numpy array or a tensor, got {type(image).__name__}; PIL.Image.open reads "
            "open files, and bytes in io.BytesIO"
        )
    return to_rgb(image)


def _check_unit_range(pixels: Tensor, channels: int) -> Tensor:
    if pixels.ndim != 3 or pixels.shape[0] != channels or pixels.numel() == 0:
        raise InputError(f"expected a tensor of shape ({channels}, height, width), got {tuple(pixels.shape)}")
    if not ((pixels >= 0) & (pixels <= 1)).all():
        raise InputError(
            f"float pixels must be in [0, 1]; these are from {float(pixels.min())} to {float(pixels.max())}: divide by "
            "the largest possible value; if some are NaN, check how they were read"
        )
    return pixels.float()


def check_statistics(mean: Sequence[float], std: Sequence[float], channels: int) -> None:
    finite = all(map(is_finite, (*mean, *std)))
    if len(mean) != channels or len(std) != channels or not finite or min(std) <= 0:
        raise InputError(f"mean and std must be {channels} finite numbers each, std positive, not {mean!r} and {std!r}")
