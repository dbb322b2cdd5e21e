"""Objects cut out by alpha, from Debian packages that anyone can install.

Photographs of objects (`tuxpaint-stamps-default`) and garments (`dataset-fashion-mnist`).
"""

from __future__ import annotations

import gzip
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from recipes.files import Array, check_choice, check_folder, held_out_of, open_picture
from whitebox_crate.errors import InputError, require
from whitebox_crate.training.batches import check_positive

STAMPS = Path("/usr/share/tuxpaint/stamps")
FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")

HELD_OUT_OBJECTS = 0.15
INK = 4  # of 255; a garment is brighter, and specks from resampling are not
SMALLEST = 48  # pixels of the longer side; a smaller photograph would be blurred when pasted

GARMENTS = (
    *("t-shirt", "trouser", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
)

# Folders of the stamps with signs, drawings or renderings, or with things that have no outline (fire, smoke).
NOT_PHOTOGRAPHS = {
    *("symbols", "cartoon", "flags", "roadsigns", "naturalforces"),
    *("easter", "hanukkah", "newyears", "moon", "planets"),
}
# Drawings that pass every rule of `_is_photograph`, and the lettering of a police car without the car.
DRAWINGS = {
    *("clothes/button", "seasonal/christmas/Santa", "seasonal/christmas/stocking"),
    "vehicles/emergency/sedan_police",
}


@dataclass(frozen=True)
class Objects:
    """Cut-out objects, one image each.

    Attributes:
        images: uint8 (count, 4, side, side), RGBA with straight (not premultiplied) alpha. The object is
            cropped tightly, keeps its aspect, and is centred in a transparent square that it just fits.
        labels: int64 (count,), indices into `class_names`.
        class_names: The names of this split's classes.
    """

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]


def photographs(split: Literal["train", "held_out", "all"], root: Path = STAMPS, side: int = 128) -> Objects:
    """Real photographs of objects from Tux Paint's stamps; every object is its own class.

    Drawings, signs, near-rectangles, tiny images and mirrored copies are left out. 15% of the objects are held out, by
    a hash of their names. Relatives stay together ("gnu-baby" and "gnu-stand").

    Args:
        split: "train", "held_out" or "all".
        root: Folder of the Debian package tuxpaint-stamps-default, or any tree of RGBA PNG files.
        side: Side of the returned squares, in pixels.

    Raises:
        InputError: If the folder is missing or holds no photograph, a picture is unreadable, or an argument
            is bad.
        MissingExtraError: If Pillow is not installed.
    """
    check_choice("split", split, ("train", "held_out", "all"))
    check_positive("side", side)
    check_folder(root, "tuxpaint-stamps-default")
    found: dict[str, Any] = {}
    seen: set[bytes] = set()
    for path in sorted(root.rglob("*.png")):
        name = path.relative_to(root).with_suffix("").as_posix()
        # A mirrored or copied stamp would put a training object among the held-out ones.
        if name.endswith("_mirror") or name in DRAWINGS or NOT_PHOTOGRAPHS.intersection(name.split("/")[:-1]):
            continue
        cut = _crop_to_alpha(open_picture(path, "RGBA"))
        if cut is None or cut.tobytes() in seen or not _is_photograph(np.asarray(cut)):
            continue
        found[name] = cut
        seen.add(cut.tobytes())
    held_out = held_out_of(found, HELD_OUT_OBJECTS, family=_family)
    names = [name for name in found if split == "all" or (name in held_out) == (split == "held_out")]
    if not names:
        raise InputError(
            f"no photograph for split {split!r} among the {len(found)} under {root}; expected RGBA PNG files "
            f"of at least {SMALLEST} px, as the Debian package tuxpaint-stamps-default has them"
        )
    images = np.stack([_fit_square(found[name], side) for name in names])
    return Objects(torch.from_numpy(images), torch.arange(len(names)), tuple(names))


def garments(split: Literal["train", "test"], root: Path = FASHION_MNIST, side: int = 28) -> Objects:
    """Fashion-MNIST (Xiao et al., 2017) as cut-out objects: grey garments, ten classes.

    The alpha covers the ink, with holes filled: the black front of a shirt belongs to the shirt.

    Args:
        split: "train" (60,000 images) or "test" (10,000).
        root: Folder with the four idx files, gzipped or not; the Debian package is dataset-fashion-mnist.
        side: Side of the returned squares, in pixels.

    Raises:
        InputError: If the folder or a file is missing, a file is not a valid idx file, or an argument is bad.
    """
    check_choice("split", split, ("train", "test"))
    check_positive("side", side)
    check_folder(root, "dataset-fashion-mnist")
    prefix = "train" if split == "train" else "t10k"
    grey = _read_idx(root, f"{prefix}-images-idx3-ubyte", dims=3)
    labels = _read_idx(root, f"{prefix}-labels-idx1-ubyte", dims=1)
    if len(grey) != len(labels) or not len(labels) or labels.max() >= len(GARMENTS):
        raise InputError(
            f"{root}: {len(grey)} images and {len(labels)} labels up to {labels.max(initial=0)}; expected "
            f"one label in 0..{len(GARMENTS) - 1} for each image; install the files again"
        )
    images = torch.from_numpy(_square_garments(grey, side))
    return Objects(images, torch.from_numpy(labels.astype(np.int64)), GARMENTS)


# --- photographs of objects ---------------------------------------------------------------------------------


def _family(name: str) -> str:
    """The first word of a stamp's file name: "animals/mammals/bovines/gnu-baby" is a "gnu"."""
    stem = name.rsplit("/", 1)[-1].lower()
    return re.split(r"[-_0-9]", stem, maxsplit=1)[0] or stem


def _is_photograph(rgba: Array) -> bool:
    """Whether a tight RGBA crop (h, w, 4) looks like a photograph of one solid object."""
    solid = rgba[..., 3] > 127
    # Below a tenth are goal posts and sparks; nearly full are slabs and cards, rectangles without an outline.
    if max(solid.shape) < SMALLEST or not 0.1 <= solid.mean() <= 0.88:
        return False
    # Ghosts, glasses and glows are see-through; an object is opaque but for its edge.
    if (rgba[..., 3] > 230).sum() < 0.65 * (rgba[..., 3] > 25).sum():
        return False
    # Drawings are filled with flat colour: neighbouring pixels are exactly equal. In photographs few are.
    same = (rgba[:, 1:, :3] == rgba[:, :-1, :3]).all(-1)
    inside = solid[:, 1:] & solid[:, :-1]
    return bool((same & inside).sum() < 0.4 * inside.sum())


def _crop_to_alpha(picture: Any) -> Any | None:
    """The picture cropped to its visible part (alpha over 10%), or None if there is none."""
    box = picture.getchannel("A").point(lambda alpha: 255 * (alpha > 25)).getbbox()
    return picture.crop(box) if box else None


def _fit_square(picture: Any, side: int) -> Array:
    """Resizes an RGBA picture to fit a transparent square, in the middle; (4, side, side)."""
    scale = side / max(picture.size)
    width, height = (max(1, round(length * scale)) for length in picture.size)
    # Pillow premultiplies RGBA while it resizes: the colour under alpha 0 does not bleed into the edge.
    resampling = require("PIL.Image", "train").Resampling.BICUBIC
    square = np.zeros((4, side, side), np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    resized = np.asarray(picture.resize((width, height), resampling))
    square[:, top : top + height, left : left + width] = resized.transpose(2, 0, 1)
    return square


# --- garments -----------------------------------------------------------------------------------------------


def _read_idx(root: Path, name: str, dims: int) -> Array:
    """Reads an idx-ubyte file, plain or gzipped: magic 0, 0, 8, dims; big-endian sizes; bytes."""
    path = root / name if (root / name).is_file() else root / f"{name}.gz"
    if not path.is_file():
        raise InputError(f"{path} is missing: apt-get install dataset-fashion-mnist, or pass its folder as root")
    try:
        content = path.read_bytes() if path.name == name else gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"cannot read {path}: {error}; install the file again") from error
    start = 4 + 4 * dims
    shape = [int.from_bytes(content[at : at + 4], "big") for at in range(4, start, 4)]
    if content[:4] != bytes([0, 0, 8, dims]) or len(content) != start + int(np.prod(shape, dtype=object)):
        raise InputError(f"{path} is not an idx file of {dims}-dimensional bytes; install the file again")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _square_garments(grey: Array, side: int) -> Array:
    """Grey images (count, h, w) as centred RGBA squares (count, 4, side, side)."""
    count, height, width = grey.shape
    edge = max(height, width)
    top, left = (edge - height) // 2, (edge - width) // 2
    squares = np.zeros((count, 4, edge, edge), np.uint8)
    inner = squares[:, :, top : top + height, left : left + width]
    alpha = _fill_holes(grey > INK)
    inner[:, :3] = (grey * alpha)[:, None]
    inner[:, 3] = 255 * alpha
    if side == edge:
        return squares
    resized = np.empty((count, 4, side, side), np.uint8)
    for start in range(0, count, 1024):  # bounded memory
        part = torch.from_numpy(squares[start : start + 1024]).float()
        part = F.interpolate(part, (side, side), mode="bilinear", antialias=True)
        # The grey is 0 outside, hence premultiplied by alpha already; the result is to be straight.
        part[:, :3] *= 255 / part[:, 3:].clamp_min(1)
        resized[start : start + 1024] = part.round().clamp(0, 255).byte().numpy()
    return resized


def _fill_holes(ink: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """The ink and everything that it encloses; bool (count, h, w) to the same shape.

    The outside is flooded from a margin: swept along rows and columns, both ways, until nothing changes.
    """
    # Images last: each step then runs over all of them at once, side by side in memory.
    free = np.ascontiguousarray(np.pad(~ink, ((0, 0), (1, 1), (1, 1)), constant_values=True).transpose(1, 2, 0))
    outside = np.zeros_like(free)
    outside[0] = True
    flooded = 0
    while flooded != (flooded := int(outside.sum())):
        for wet, dry in ((outside, free), (outside.swapaxes(0, 1), free.swapaxes(0, 1))):
            last = len(wet) - 1
            for i in range(last):
                wet[i + 1] |= wet[i] & dry[i + 1]
            for i in range(last, 0, -1):
                wet[i - 1] |= wet[i] & dry[i - 1]
    return ~outside[1:-1, 1:-1].transpose(2, 0, 1)
