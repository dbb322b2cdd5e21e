"""Reads archives of cut-out objects and backgrounds. Names decide the classes and what is held out."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from recipes.objects import Objects
from whitebox_crate.errors import InputError, require

Split = Literal["train", "validation"]
Array = npt.NDArray[np.uint8]

SIDE = 128  # pixels; of objects and backgrounds in memory
VALIDATION_OBJECTS = 8  # one in so many instances, in classes that keep at least three for training
VALIDATION_PICTURES = 20  # one in so many backgrounds
SPECK = 0.05  # share of an object's largest piece; smaller pieces are remains of the background
# Caltech-101's drawings, and brains, which are nearly all diagrams.
DRAWINGS = {*("brain", "dollar_bill", "garfield", "snoopy", "yin_yang")}
# One name for classes with several names in the sources.
ALIASES = {
    "airplanes": "airplane",
    "motorbikes": "motorcycle",
    "soccer ball": "sports ball",
    "windsor chair": "chair",
    "carrots": "carrot",
    "cougar body": "cougar",
}


def cutouts(archive: Path, split: Split, side: int = SIDE) -> Objects:
    """Objects of an archive with members SOURCE/CLASS/FILE, RGBA pictures; one class may come from several sources.

    Drawings, transparent pictures, near-rectangles and tiny ones are left out. From the others, small loose pieces are
    removed, and the outline is drawn in by a pixel, where the old background shows. Both splits have the same classes.

    Args:
        archive: A tar file.
        split: "train", or "validation": one in eight instances of a class with four or more, chosen by a hash of
            the names.
        side: Side of the returned squares, in pixels.

    Raises:
        InputError: If the archive or a picture of it cannot be read, or holds no object.
        MissingExtraError: If Pillow is not installed.
    """
    found: dict[str, Array] = {}
    for name, picture in _pictures(archive, "RGBA"):
        if name.split("/")[-2] in DRAWINGS:
            continue
        square = _clean(_fitted(picture, side))
        if square is not None and is_object(square):
            found[name] = square
    names = {name: class_name(name) for name in found}
    classes = tuple(sorted(set(names.values())))
    held_out = _held_out(names)
    chosen = [name for name in sorted(found) if (name in held_out) == (split == "validation")]
    if not chosen:
        raise InputError(f"{archive} holds no object for {split!r}; its members are SOURCE/CLASS/FILE with alpha")
    labels = torch.tensor([classes.index(names[name]) for name in chosen])
    return Objects(torch.from_numpy(np.stack([found[name] for name in chosen])), labels, classes)


def backgrounds(archive: Path, split: Split, side: int = SIDE) -> Tensor:
    """Pictures of an archive with members KIND/CLASS/FILE, the middle square of each.

    Args:
        archive: A tar file.
        split: "train", or "validation": one file in twenty, chosen by a hash of the names.
        side: Side of the squares after resizing, in pixels.

    Returns:
        uint8 (count, 3, side, side).

    Raises:
        InputError: If the archive or a picture of it cannot be read, or has none for this split.
        MissingExtraError: If Pillow is not installed.
    """
    chosen: list[Array] = []
    for name, picture in _pictures(archive, "RGB"):
        if (_hash(name) % VALIDATION_PICTURES == 0) == (split == "validation"):
            edge = min(picture.size)
            left, top = ((length - edge) / 2 for length in picture.size)
            resampling = require("PIL.Image", "train").Resampling.BICUBIC
            square = picture.resize((side, side), resampling, box=(left, top, left + edge, top + edge))
            chosen.append(np.asarray(square, np.uint8).transpose(2, 0, 1))
    if not chosen:
        raise InputError(f"{archive} holds no picture for {split!r}")
    return torch.from_numpy(np.stack(chosen))


def merge(parts: Sequence[Objects]) -> Objects:
    """Objects of several sources as one; classes of one name become one class.

    Raises:
        InputError: If there is nothing to merge.
    """
    if not parts:
        raise InputError("nothing to merge; expected the objects of one source or more")
    names = tuple(dict.fromkeys(name for part in parts for name in part.class_names))
    number = {name: index for index, name in enumerate(names)}
    labels = [torch.tensor([number[name] for name in part.class_names])[part.labels] for part in parts]
    return Objects(torch.cat([part.images for part in parts]), torch.cat(labels), names)


def class_name(member: str) -> str:
    """The class of an archive's member: its folder, in plain words."""
    name = member.split("/")[-2].replace("_", " ").lower()
    return ALIASES.get(name, name)


def is_object(rgba: Array) -> bool:
    """Whether a fitted square, uint8 (4, side, side), looks like the photograph of one solid object."""
    solid = rgba[3] > 127
    if not solid.any():
        return False
    rows, columns = solid.any(1).nonzero()[0], solid.any(0).nonzero()[0]
    box = (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)
    # A twelfth of its box are wires and outlines; nearly all of it are cards and whole pictures.
    if not 0.12 <= solid.sum() / box <= 0.93 or solid.mean() < 0.04:
        return False
    colours = rgba[:3, solid].astype(np.int16)
    # White in a third of it, and hardly a colour or a grey in between: ink on paper, or the paper was left in.
    white, ink = (colours.min(0) > 235).mean(), (colours.max(0) < 60).mean()
    grey = (colours.max(0) - colours.min(0) < 24).mean()
    return bool(white < 0.3 and not (grey > 0.9 and white + ink > 0.55))


def _held_out(names: dict[str, str]) -> set[str]:
    """One in eight instances (at least one) of each class with four or more, by hash."""
    chosen: set[str] = set()
    for name, count in Counter(names.values()).items():
        if count >= 4:
            members = sorted((member for member in names if names[member] == name), key=_hash)
            chosen.update(members[: max(1, count // VALIDATION_OBJECTS)])
    return chosen


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")


def _pictures(archive: Path, mode: str) -> Iterator[tuple[str, Any]]:
    """Name and decoded picture of each file of a tar, in the order of the names."""
    image_module = require("PIL.Image", "train")
    try:
        with tarfile.open(archive) as tar:
            files = [member for member in tar.getmembers() if member.isfile() and member.name.count("/") >= 2]
            for member in sorted(files, key=lambda member: member.name):
                content = tar.extractfile(member)
                if content is not None and member.name.endswith((".webp", ".jpg", ".png")):
                    with image_module.open(io.BytesIO(content.read())) as picture:
                        yield member.name.removeprefix("./"), picture.convert(mode)
    except (OSError, tarfile.TarError, SyntaxError) as error:
        raise InputError(f"cannot read {archive}: {error}; expected a tar of pictures") from error


def _fitted(picture: Any, side: int) -> Array:
    """An RGBA picture cropped to its alpha, in the middle of a transparent square; uint8 (4, side, side)."""
    resampling = require("PIL.Image", "train").Resampling.BICUBIC
    box = picture.getchannel("A").point(lambda alpha: 255 * (alpha > 25)).getbbox()
    square = np.zeros((4, side, side), np.uint8)
    if box:
        picture = picture.crop(box)
        scale = side / max(picture.size)
        width, height = (max(1, round(length * scale)) for length in picture.size)
        top, left = (side - height) // 2, (side - width) // 2
        resized = np.asarray(picture.resize((width, height), resampling))
        square[:, top : top + height, left : left + width] = resized.transpose(2, 0, 1)
    return square


def _clean(square: Array) -> Array | None:
    """The object without loose pieces, its outline drawn in by a pixel; None if nothing stays."""
    alpha = torch.from_numpy(square[3]).float()
    eroded = -F.max_pool2d(-alpha[None, None], 3, stride=1, padding=1)[0, 0]
    pieces = _pieces(F.max_pool2d((eroded > 127)[None, None].float(), 2, ceil_mode=True)[0, 0])  # coarse, for speed
    sizes = pieces.flatten().bincount()
    sizes[0] = 0
    if not int(sizes.max()):
        return None
    kept = (sizes >= SPECK * sizes.max())[pieces][None, None].float()
    near = F.max_pool2d(F.interpolate(kept, scale_factor=2), 3, stride=1, padding=1)[0, 0]  # and the soft edge around
    near = near[: alpha.shape[0], : alpha.shape[1]]
    cleaned = square.copy()
    cleaned[3] = (eroded * near).byte().numpy()
    return cleaned


def _pieces(mask: Tensor) -> Tensor:
    """A number for each connected piece of a mask of 0 and 1, (side, side), 0 outside; int64, not consecutive."""
    numbers = torch.arange(1, mask.numel() + 1, dtype=torch.float32).view(mask.shape) * mask
    while True:
        spread = F.max_pool2d(numbers[None, None], 3, stride=1, padding=1)[0, 0] * mask
        if torch.equal(spread, numbers):
            return numbers.long()
        numbers = spread
