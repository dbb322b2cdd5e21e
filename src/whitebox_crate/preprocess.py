"""Images to tensors."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .errors import InputError, require
from .layers.embed import Size, to_pair
from .models._pretrained_cfg import IMAGENET_MEAN, IMAGENET_STD

if TYPE_CHECKING:
    from PIL.Image import Image


def load_image(path: str | os.PathLike[str]) -> Image:
    """Reads an image as a viewer shows it: turned upright by its EXIF tag, transparency laid on white.

    Of an animation, the first frame; 16-bit grey is scaled to 8 bits.

    Args:
        path: Any file that Pillow reads.

    Returns:
        A Pillow image in mode RGB.

    Raises:
        InputError: If the file is absent, unreadable, damaged, cut short, no image, or larger than Pillow
            deems safe; the message names the file.
        MissingExtraError: If Pillow is not installed.
    """
    pillow: Any = require("PIL.Image", extra="images")
    transpose: Any = require("PIL.ImageOps", extra="images").exif_transpose
    name = os.fspath(path)
    try:
        file = open(name, "rb")  # noqa: SIM115, so that its errors are told from those of the decoder
    except (OSError, ValueError) as error:
        raise InputError(f"{name!r} cannot be opened: {error}; look at the path") from error
    with file:
        try:
            with pillow.open(file) as image:
                return _to_rgb(transpose(image))
        except InputError as error:
            raise InputError(f"{name}: {error}") from error
        except pillow.DecompressionBombError as error:
            raise InputError(f"{name}: {error} Make it smaller first.") from error
        except pillow.UnidentifiedImageError as error:
            raise InputError(f"{name} is no image, or of a format that Pillow does not read") from error
        except Exception as error:  # Pillow's decoders raise nearly anything on damaged data
            raise InputError(f"{name} is damaged or cut short: {type(error).__name__}: {error}") from error


def resize_to_grid(image: Image, patch_size: Size, short_side: int, long_side: int | None = None) -> Image:
    """Scales an image so that patches tile it: nothing is cut off, and sides are rounded to whole patches.

    Args:
        image: A Pillow image of any size and mode.
        patch_size: (height, width) of a patch or one number, pixels.
        short_side: Length that the shorter side gets, pixels, before rounding to whole patches.
        long_side: Length that the longer side does not exceed; the whole image is scaled down further for it.
            Default 4 * `short_side`, so that no panorama asks for any amount of memory.

    Returns:
        A Pillow image in mode RGB, resampled by Pillow's antialiased bicubic filter; each side is a multiple
        of the patch, and at least one patch.

    Raises:
        InputError: If a size is not positive.
    """
    pillow: Any = require("PIL.Image", extra="images")
    patch_height, patch_width = to_pair(patch_size)
    longest = 4 * short_side if long_side is None else long_side
    if short_side < 1 or longest < 1:
        raise InputError(f"sides are at least 1 pixel, not {short_side} and {longest}")
    width, height = image.size
    scale = min(short_side / min(width, height), longest / max(width, height))
    rows = max(1, round(height * scale / patch_height))
    columns = max(1, round(width * scale / patch_width))
    return _to_rgb(image).resize((columns * patch_width, rows * patch_height), pillow.Resampling.BICUBIC)


def image_to_tensor(
    image: Image | np.ndarray[Any, Any] | Tensor,
    *,
    size: Size | None = None,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> Tensor:
    """Turns one image into what a model takes: (pixels / 255 - mean) / std.

    Args:
        image: A Pillow image of any mode; uint8 (height, width, 3) in numpy; or uint8 in [0, 255] or float in
            [0, 1], (3, height, width), in torch.
        size: (height, width) or one number, pixels, to resize to by Pillow's antialiased bicubic filter,
            whatever the proportions. Float tensors are not resized.
        mean: Per channel, of images scaled to [0, 1].
        std: Per channel, likewise.

    Returns:
        (3, height, width), float32, on the device of a tensor, else on the CPU. Stack them for a batch.

    Raises:
        InputError: If the image is none of these, or a value of it is out of range.
        MissingExtraError: If Pillow is needed and not installed.
    """
    if isinstance(image, Tensor) and image.is_floating_point():
        pixels = _check_unit_range(image)
        if size is not None and to_pair(size) != tuple(pixels.shape[1:]):
            raise InputError("float tensors are not resized; give it the right size, or give uint8 pixels")
    else:
        pixels = _pixels(image, None if size is None else to_pair(size)).float() / 255
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise InputError(f"mean and std are three numbers each, std positive, not {mean!r} and {std!r}")
    offset, scale = (pixels.new_tensor(values).view(3, 1, 1) for values in (mean, std))
    return ((pixels - offset) / scale).contiguous()


def _pixels(image: Any, size: tuple[int, int] | None) -> Tensor:
    """uint8 (3, height, width) of any 8-bit input, resized if asked."""
    pillow: Any = require("PIL.Image", extra="images")
    device = None
    if isinstance(image, Tensor):
        device, image = image.device, image.detach().cpu().numpy()
        image = image.transpose(1, 2, 0) if image.ndim == 3 else image
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
            raise InputError(
                "expected uint8 pixels of shape (height, width, 3) in numpy or (3, height, width) in torch; "
                f"as (height, width, channels) this is {image.dtype} of {image.shape}"
            )
        image = pillow.fromarray(np.ascontiguousarray(image))
    elif not isinstance(image, pillow.Image):
        raise InputError(f"expected a Pillow image, a numpy array or a tensor, got {type(image).__name__}")
    rgb = _to_rgb(image)
    if size is not None:
        rgb = rgb.resize((size[1], size[0]), pillow.Resampling.BICUBIC)
    return torch.from_numpy(np.array(rgb)).permute(2, 0, 1).to(device)


def _to_rgb(image: Image) -> Image:
    if image.mode == "F":
        raise InputError("its pixels are floats of unknown range; save it with 8 or 16 bits")
    if image.mode.startswith("I"):  # 16-bit grey, which convert would clip
        image = image.point(lambda value: value / 256).convert("L")
    if "A" in image.getbands() or "transparency" in image.info:
        pillow: Any = require("PIL.Image", extra="images")
        rgba = image.convert("RGBA")
        white = pillow.new("RGBA", rgba.size, "white")
        image = pillow.alpha_composite(white, rgba)
    return image.convert("RGB")


def _check_unit_range(pixels: Tensor) -> Tensor:
    if pixels.ndim != 3 or pixels.shape[0] != 3 or pixels.numel() == 0:
        raise InputError(f"expected a tensor of shape (3, height, width), got {tuple(pixels.shape)}")
    if not ((pixels >= 0) & (pixels <= 1)).all():
        raise InputError(
            f"float pixels are in [0, 1]; these are from {float(pixels.min())} to {float(pixels.max())}: divide by the "
            "largest value they can have; if some are NaN, look at how they were read"
        )
    return pixels.float()
