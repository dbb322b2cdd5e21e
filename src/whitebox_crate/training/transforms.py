"""Turns a part of a picture into a square of pixels, mirrored or not. Decodes only what the part needs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import IO, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ..errors import require
from ..images import reading, to_rgb

Box: TypeAlias = tuple[float, float, float, float]  # left, top, right, bottom, in pixels

AREAS = (0.08, 1.0)
ASPECTS = (3 / 4, 4 / 3)
TRIES = 10
ORIENTATION, TURNED = 0x0112, range(5, 9)  # EXIF's tag, and its values that swap height and width
GAP = 3.0  # pixels are averaged down to this factor of the wanted size before resampling


def centre_box(width: int, height: int) -> Box:
    """The largest square in the middle. Resizing it equals resizing the shorter side, then cropping the longer."""
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def random_box(
    width: int,
    height: int,
    generator: np.random.Generator,
    areas: tuple[float, float] = AREAS,
    aspects: tuple[float, float] = ASPECTS,
) -> Box:
    """A part of random area, aspect and place, as in Szegedy et al. 2015 (arXiv 1409.4842, Section 6).

    The area is uniform, and so is the logarithm of the aspect. A part that does not fit is drawn again, up to ten
    times. Then the largest part in the middle with an allowed aspect is taken.

    Args:
        width: Width of the picture, pixels.
        height: Height of the picture, pixels.
        generator: The only source of randomness.
        areas: Smallest and largest share of the picture's area.
        aspects: Smallest and largest width divided by height.
    """
    for _ in range(TRIES):
        area = generator.uniform(*areas) * width * height
        aspect = math.exp(generator.uniform(math.log(aspects[0]), math.log(aspects[1])))
        wide, tall = math.sqrt(area * aspect), math.sqrt(area / aspect)
        if wide <= width and tall <= height:
            left, top = generator.uniform(0, width - wide), generator.uniform(0, height - tall)
            return left, top, left + wide, top + tall
    aspect = min(max(width / height, aspects[0]), aspects[1])
    wide, tall = min(width, height * aspect), min(height, width / aspect)
    left, top = (width - wide) / 2, (height - tall) / 2
    return left, top, left + wide, top + tall


def read_part(file: IO[bytes], name: str, size: int, box_of: Callable[[int, int], Box], mirrored: bool) -> Tensor:
    """Reads a part of a picture: upright by its EXIF tag, transparency on white, as in `load_image`.

    A JPEG much larger than needed is decoded at a half, a quarter or an eighth of its size.

    Args:
        file: The picture, in any format that Pillow reads.
        name: Its name in errors.
        size: Side of the result, pixels; resampled by Pillow's antialiased bicubic filter.
        box_of: The part, given the width and height of the upright picture.
        mirrored: Whether to swap left and right.

    Returns:
        float32 (3, size, size), in [0, 1].

    Raises:
        InputError: See `load_image`.
    """
    bicubic: Any = require("PIL.Image", extra="images").Resampling.BICUBIC
    with reading(file, name) as image:
        turned = image.getexif().get(ORIENTATION) in TURNED
        width, height = reversed(image.size) if turned else image.size
        left, top, right, bottom = box_of(width, height)
        if (share := size / min(right - left, bottom - top)) < 1:
            image.draft(None, tuple(math.ceil(side * share) for side in image.size))
        photo = to_rgb(image, upright=True)
    across, down = photo.width / width, photo.height / height
    box = left * across, top * down, min(right * across, photo.width), min(bottom * down, photo.height)
    photo = photo.resize((size, size), bicubic, box=box, reducing_gap=GAP)
    pixels = np.array(photo)
    return torch.from_numpy(pixels[:, ::-1].copy() if mirrored else pixels).permute(2, 0, 1).float().div_(255)
