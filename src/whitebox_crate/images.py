"""Reads photographs, from a file or a Pillow image of any kind, into 8-bit RGB."""

from __future__ import annotations

import io
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from .errors import InputError, check_kind, require

if TYPE_CHECKING:
    from PIL.Image import Image

# Formats of photographs. Pillow knows more, but runs other programs for some (EPS), and some are not pictures.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "AVIF", "JPEG2000", "TGA", "ICO")
# A picture with more pixels than this needs a byte per so many pixels at least; real pictures have far more bytes.
FEW_PIXELS, MOST_PER_BYTE = 1 << 24, 100
ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+:/", re.IGNORECASE)  # pathlib makes one slash of two; C:/ is a disk


def image_suffixes() -> frozenset[str]:
    """The suffixes of photographs, in lower case: those of `FORMATS` that this Pillow reads.

    Raises:
        MissingExtraError: If Pillow is not installed.
    """
    pillow: Any = require("PIL.Image", extra="images")
    kinds = pillow.registered_extensions()  # this loads all formats
    return frozenset(suffix for suffix, kind in kinds.items() if kind in FORMATS and kind in pillow.OPEN)


def image_files(folder: str | os.PathLike[str]) -> list[Path]:
    """The photographs in a folder, told by their suffixes, sorted, without hidden files.

    Raises:
        InputError: If there are no photographs, or the folder cannot be read.
    """
    try:
        files = sorted(path for path in Path(folder).iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise InputError(f"the folder {os.fspath(folder)!r} cannot be read: {error}; check the path") from error
    suffixes = image_suffixes()
    found = [path for path in files if path.suffix.lower() in suffixes]
    if not found:
        raise InputError(
            f"{os.fspath(folder)!r} holds no image ({', '.join(FORMATS)}); folders inside it are not searched: name "
            "one of them"
        )
    return found


def load_image(path: str | os.PathLike[str], *, upright: bool = True) -> Image:
    """Reads an image as a viewer shows it: turned upright by its EXIF tag, transparency on white.

    An animation gives its first frame. 16-bit grey is scaled to 8 bits. An unreadable EXIF tag is ignored.

    Args:
        path: A file in one of `FORMATS`. Its content tells the format, not its name.
        upright: False leaves the pixels as they are stored, whatever the EXIF tag says.

    Returns:
        A Pillow image in mode RGB.

    Raises:
        InputError: If the file is absent, unreadable, damaged, cut short, not an image, or larger than Pillow deems
            safe; the message names the file.
        MissingExtraError: If Pillow is not installed.

    Example:
        >>> photo = load_image("photo.jpg")
        >>> photo.size, photo.mode
        ((420, 280), 'RGB')
    """
    require("PIL.Image", extra="images")
    check_kind("a photograph", path, str | os.PathLike, "give the path of its file")
    name = os.fspath(path)
    try:
        kind = os.stat(name).st_mode
        if stat.S_ISFIFO(kind):
            raise OSError("it is a pipe, not a file")
        if stat.S_ISDIR(kind):
            raise OSError("it is a directory; give the pictures in it")
        file = open(name, "rb")  # noqa: SIM115, to tell its errors from the decoder's
    except (OSError, ValueError) as error:
        check_is_no_address(name)
        raise InputError(f"{name!r} cannot be opened: {error}; check the path") from error
    with file, reading(file, name) as image:
        return to_rgb(image, upright=upright)


def check_is_no_address(name: str) -> None:
    """Refuses a web address.

    Raises:
        InputError: If `name` is one.
    """
    if ADDRESS.match(name) and not os.path.exists(name):
        raise InputError(
            f"{name!r} is a web address, and nothing is downloaded here; download the file, then give its path"
        )


@contextmanager
def reading(file: IO[bytes], name: str) -> Iterator[Any]:
    """The image in an open file, not yet decoded. Every error of the image inside the block becomes an InputError.

    Args:
        file: The file.
        name: Its name in errors.

    Yields:
        A Pillow image, which reads its pixels from the file when they are used.

    Raises:
        InputError: If the file is damaged, cut short, not an image, larger than Pillow deems safe, or claims far more
            pixels than its bytes can hold.
        MissingExtraError: If Pillow is not installed.
    """
    pillow: Any = require("PIL.Image", extra="images")
    try:
        nbytes = file.seek(0, io.SEEK_END)
        file.seek(0)
        with pillow.open(file, formats=[kind for kind in FORMATS if kind in _known(pillow)]) as image:
            if image.width * image.height > max(FEW_PIXELS, MOST_PER_BYTE * nbytes):
                raise InputError(
                    f"it is {image.width} x {image.height} pixels in {nbytes} bytes: a nearly empty picture that would "
                    "fill memory; make it smaller first"
                )
            yield image
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    except pillow.DecompressionBombError as error:
        raise InputError(f"{name}: {error} Make it smaller first.") from error
    except pillow.UnidentifiedImageError as error:
        raise InputError(
            f"{name} is not an image in one of the formats {', '.join(FORMATS)}; convert it to PNG or JPEG"
        ) from error
    except Exception as error:  # Pillow's decoders raise many kinds of errors on damaged data
        raise InputError(
            f"{name} is damaged or cut short: {type(error).__name__}: {error}; download or save it again"
        ) from error


def to_rgb(image: Image, *, upright: bool = False) -> Image:
    """Turns a Pillow image of any mode into RGB: transparency on white, 16-bit grey scaled to 8 bits.

    Args:
        image: The image.
        upright: Whether to turn it as its EXIF tag says.

    Raises:
        InputError: If it has no pixels, or a mode of unknown range.
    """
    range_known = image.mode != "F" and (image.mode != "I" or _has_16_bits(image))
    if upright:
        # Broken metadata must not make a picture unreadable.
        with suppress(Exception):
            image = require("PIL.ImageOps", extra="images").exif_transpose(image)
    if min(image.size) < 1:
        raise InputError(f"the image is {image.width} x {image.height}: it has no pixels")
    if not range_known:
        numbers = "floats" if image.mode == "F" else "32-bit integers"
        raise InputError(f"its pixels are {numbers} of unknown range; save the image with 8 or 16 bits")
    if image.mode.startswith("I"):  # 16-bit grey, which convert would clip
        image = image.convert("I").point(lambda value: value / 256).convert("L")
    if image.mode in ("La", "RGBa"):  # premultiplied
        image = image.convert(image.mode.upper())
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        pillow: Any = require("PIL.Image", extra="images")
        rgba = image.convert("RGBA")
        white = pillow.new("RGBA", rgba.size, "white")
        image = pillow.alpha_composite(white, rgba)
    try:
        return image.convert("RGB")
    except ValueError as error:
        raise InputError(
            f"Pillow cannot turn its mode {image.mode} into RGB: {error}; save the image as RGB"
        ) from error


def _has_16_bits(image: Image) -> bool:
    """Whether 32-bit integers hold 16-bit grey: by the format of a file, or by the values in memory."""
    if image.format is not None:
        return image.format in ("PNG", "PPM")
    darkest, lightest = image.getextrema()
    return bool(darkest >= 0 and lightest < 1 << 16)  # type: ignore[operator]  # two numbers for one band


def _known(pillow: Any) -> Any:
    """The formats of this Pillow, after `init` has loaded them all."""
    pillow.init()
    return pillow.OPEN
