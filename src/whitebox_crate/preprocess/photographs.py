"""A photograph of any size as a model sees it: scaled to whole patches, nothing cut off."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor, nn

from ..backbones import readable
from ..errors import InputError, is_finite, require
from ..images import to_rgb
from ..layers.patch_embed import Size, to_pair
from .pixels import MOST_PIXELS, image_to_tensor

if TYPE_CHECKING:
    from PIL.Image import Image

MOST_PATCHES = 1 << 18  # most of a photograph for a model


def resize_to_grid(
    image: Image, patch_size: Size, short_side: int, long_side: int | None = None, *, square: bool = False
) -> Image:
    """Scales an image so that whole patches tile it. Nothing is cut off; sides are rounded to whole patches.

    Args:
        image: A Pillow image of any size and mode.
        patch_size: (height, width) of a patch or one number, pixels.
        short_side: Length of the shorter side, pixels, before rounding to whole patches.
        long_side: Largest length of the longer side, pixels; for it, the whole image is scaled down further. Default
            4 * `short_side`, so that a panorama does not fill memory.
        square: Whether both sides get `short_side`, whatever the image's proportions.

    Returns:
        A Pillow image in mode RGB, resampled by Pillow's antialiased bicubic filter; each side is a multiple
        of the patch, and at least one patch.

    Raises:
        InputError: If a size is not positive, or makes more patches than a model could take.
    """
    pillow: Any = require("PIL.Image", extra="images")
    patch_height, patch_width = to_pair(patch_size)
    rows, columns = grid_for(image, patch_size, short_side, long_side, square=square)
    return to_rgb(image).resize((columns * patch_width, rows * patch_height), pillow.Resampling.BICUBIC)


def grid_for(
    image: Image, patch_size: Size, short_side: int, long_side: int | None = None, *, square: bool = False
) -> tuple[int, int]:
    """The (rows, columns) of patches of an image after `resize_to_grid`, with the same arguments and errors."""
    patch_height, patch_width = to_pair(patch_size)
    longest = 4 * short_side if long_side is None else long_side
    if not all(is_finite(side) and 1 <= side <= 4 * MOST_PIXELS for side in (short_side, longest)):
        raise InputError(
            f"sides must be from 1 to {4 * MOST_PIXELS} pixels, not {short_side!r:.50} and {longest!r:.50}"
        )
    width, height = (1, 1) if square else image.size
    scale = min(short_side / min(width, height), longest / max(width, height))
    rows, columns = max(1, round(height * scale / patch_height)), max(1, round(width * scale / patch_width))
    _check_patches(rows, columns, (patch_height, patch_width), short_side)
    return rows, columns


def _check_patches(rows: int, columns: int, patch: tuple[int, int], short_side: int) -> None:
    """Refuses a picture that would fill the memory, before it takes any."""
    patches, pixels = rows * columns, rows * columns * patch[0] * patch[1]
    if (share := max(patches / MOST_PATCHES, pixels / MOST_PIXELS)) > 1:
        most = min(MOST_PATCHES, MOST_PIXELS // (patch[0] * patch[1]))
        raise InputError(
            f"a shorter side of {short_side} pixels makes {rows} x {columns} = {patches:,} patches of {patch[0]} x "
            f"{patch[1]} pixels, but at most {most:,} are allowed; "
            f"give a size (--size) of at most {max(1, int(short_side / math.sqrt(share)))}"
        )


def best_short_side(model: nn.Module) -> int:
    """The shorter side of a photograph, pixels, at which a model's attention shows objects best.

    Args:
        model: The model. Its `pretrained_cfg.attention_size` says; if that was not measured, its own image size counts.
    """
    core = readable(model)
    return core.pretrained_cfg.attention_size or min(core.img_size)


class SeenPhoto(NamedTuple):
    """A photograph as a model sees it.

    Attributes:
        image: Pillow, RGB, scaled to whole patches, or to the one size that the model takes.
        pixels: (3, height, width), normalised, on the model's device, of its dtype; `pixels[None]` is a batch.
    """

    image: Image
    pixels: Tensor


def fit_photo(model: nn.Module, photo: Image, short_side: int | None = None) -> SeenPhoto:
    """Turns a photograph into a model's tensor: whole patches, nothing cut off, the weights' mean and std.

    A model that takes only one size (`dynamic_img_size=False`) sees the photograph resized to that size, whatever its
    proportions. A model that takes only squares (`square_images`, as CBT's released pooling) sees it as a square.

    Args:
        model: A model that `capture` reads.
        photo: A Pillow image of any size and mode, as `whitebox_crate.images.load_image` reads it.
        short_side: Shorter side of the image, pixels, before rounding to whole patches; `best_short_side` if None.

    Raises:
        InputError: If the model does not take 3 channels, or the side is not positive, or the model takes only another
            size.
        MissingExtraError: If Pillow is not installed.

    Example:
        >>> from whitebox_crate.images import load_image
        >>> model = create_model("crate_nano", pretrained=True)
        >>> fit_photo(model, load_image("photo.jpg"), short_side=96).pixels.shape
        torch.Size([3, 96, 144])
    """
    core = readable(model)
    check_takes_photos(core)
    side = best_short_side(core) if short_side is None else short_side
    if core.dynamic_img_size:
        image = resize_to_grid(photo, core.patch_size, side, square=core.square_images)
    elif short_side in (None, min(core.img_size)):
        pillow: Any = require("PIL.Image", extra="images")
        image = to_rgb(photo).resize(core.img_size[::-1], pillow.Resampling.BICUBIC)
    else:
        height, width = core.img_size
        raise InputError(
            f"the model takes only images of {height} x {width}, not size {short_side}; leave the size out"
        )
    pixels = image_to_tensor(image, mean=core.pretrained_cfg.mean, std=core.pretrained_cfg.std)
    return SeenPhoto(image, pixels.to(next(core.patch_embed.parameters())))


def check_takes_photos(model: nn.Module, name: str = "the model") -> None:
    """Refuses a model that does not take the 3 channels of a photograph.

    Raises:
        InputError: If it does not; the message calls the model by `name`.
    """
    channels = readable(model).in_chans
    if channels != 3:
        raise InputError(f"{name} takes {channels} channels, but photographs have 3; choose another model")
