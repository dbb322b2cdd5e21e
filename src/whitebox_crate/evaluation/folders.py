"""Reads images with label masks: published Pascal VOC 2012, and any folder of images and mask PNGs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .._folders import files_below
from ..errors import InputError, UnknownNameError, listed, require
from ..images import FORMATS, image_suffixes, load_image
from .records import content_of

if TYPE_CHECKING:
    from PIL.Image import Image

MASK_FORMATS = ("PNG", "TIFF", "BMP", "GIF", "PPM")  # lossless, and Pillow runs no other program for them
VOID = 255  # the label of VOC's pixels to leave out: edges of objects, and difficult objects
# By label, from 1 on; 0 is background.
VOC_CLASSES = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)


@dataclass(frozen=True)
class LabelledImage:
    """The files of an image and its mask. Only `read` reads them.

    Attributes:
        image: Any image that Pillow reads.
        mask: PNG of a label for each pixel.
    """

    image: Path
    mask: Path

    def content(self) -> str:
        """A hash of the contents of the two files (`records.content_of`).

        Raises:
            InputError: If a file cannot be read.
        """
        return content_of(self.image, self.mask)

    def read(self) -> tuple[Image, Tensor]:
        """Reads both. The image is as stored, or turned upright by its EXIF tag if only then the mask fits.

        Returns:
            The Pillow image in mode RGB, and its labels, int64 (height, width).

        Raises:
            InputError: If a file is missing, unreadable or damaged, their sizes differ, or the mask has colours in
                place of labels.
            MissingExtraError: If Pillow is not installed.
        """
        labels = read_labels(self.mask)
        image = load_image(self.image, upright=False)
        if labels.shape != (image.height, image.width):  # a mask that was drawn upright has the upright size
            stored, image = image, load_image(self.image)
        if labels.shape != (image.height, image.width):
            sizes = [f"{height} x {width}" for height, width in (labels.shape, (stored.height, stored.width))]
            raise InputError(
                f"{self.mask} is {sizes[0]} (height x width), {self.image} {sizes[1]}; make the mask again at the size "
                "of the image"
            )
        return image, labels


@dataclass(frozen=True)
class LabelledImages:
    """Images with masks, and the meaning of their labels.

    Attributes:
        items: (name of the image, its files).
        class_names: The class of each label; None if labels are only numbers. 0 is background.
        void: The label of pixels to leave out, if any.
    """

    items: Sequence[tuple[str, LabelledImage]]
    class_names: Mapping[int, str] | None
    void: int | None

    def check_files(self) -> None:
        """Checks that all files exist, before hours are spent on the others.

        Raises:
            InputError: If some are missing; the message names the first ones.
        """
        missing = [path for _, pair in self.items for path in (pair.image, pair.mask) if not path.is_file()]
        if missing:
            raise InputError(
                f"{len(missing)} files of {len(self.items)} images and masks are missing: "
                f"{listed(map(str, missing))}; add them"
            )


def read_voc(root: str | os.PathLike[str], split: str = "val") -> LabelledImages:
    """The images of a segmentation list of Pascal VOC 2012, or of a data set in its layout.

    Labels are 1 to 20 for `VOC_CLASSES`, 0 for background and 255 (`VOID`) for pixels to leave out. A data set with
    other classes names them in classes.txt beside JPEGImages, one per line: the label, then the name.

    Args:
        root: The folder with JPEGImages, SegmentationClass and ImageSets, or one that has it as VOC2012 or
            VOCdevkit/VOC2012.
        split: Name of a list in ImageSets/Segmentation: "train", "val" (1,449 images), "trainval", or your own.

    Returns:
        The images, in the order of the list.

    Raises:
        InputError: If the layout is missing, the list is empty, or classes.txt is not such a list.
        UnknownNameError: If there is no such list.
    """
    places = [Path(root), Path(root) / "VOC2012", Path(root) / "VOCdevkit" / "VOC2012"]
    home = next((place for place in places if (place / "JPEGImages").is_dir()), None)
    if home is None:
        raise InputError(
            f"no JPEGImages in {', '.join(map(str, places))}; unpack VOCtrainval_11-May-2012.tar and give the folder "
            "that it makes"
        )
    images, masks, lists = home / "JPEGImages", home / "SegmentationClass", home / "ImageSets" / "Segmentation"
    for folder in (masks, lists):
        if not folder.is_dir():
            raise InputError(f"there is no folder {folder}; unpack VOCtrainval_11-May-2012.tar again")
    path = lists / f"{split}.txt"
    if not path.is_file():
        known = [found.stem for found in lists.glob("*.txt")]
        raise UnknownNameError.of(
            f"list of images in {lists}", split, known, "A list is a text file with one name per line."
        )
    try:
        names = path.read_text().split()
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}; it must be text with one name per line") from error
    if not names:
        raise InputError(f"{path} is empty; it must have one image name per line")
    items = [(name, LabelledImage(images / f"{name}.jpg", masks / f"{name}.png")) for name in names]
    return LabelledImages(items, _read_class_names(home) or dict(enumerate(VOC_CLASSES, start=1)), VOID)


def read_folder(root: str | os.PathLike[str], void: int | None = None) -> LabelledImages:
    """The images of a folder, each with the mask PNG of the same name.

    `images/a.jpg` belongs to `masks/a.png`; subfolders are fine. The palette indices or grey values of a mask are its
    labels; 0 is background. classes.txt beside the two folders may name them, one per line: the label, then the name.

    Args:
        root: The folder with `images` and `masks`.
        void: The label of pixels to leave out, if any.

    Returns:
        All images and all masks, named without suffix, sorted by name. (So an image without a mask is noticed, and a
        mask without an image.)

    Raises:
        InputError: If a folder is missing, there is no image, two images or masks have one name, or classes.txt is not
            such a list.

    Example:
        >>> data = read_folder("data")  # data/images/photo.jpg and data/masks/photo.png
        >>> [name for name, files in data.items]
        ['photo']
    """
    home = Path(root)
    for folder in (home / "images", home / "masks"):
        if not folder.is_dir():
            raise InputError(
                f"there is no folder {folder}; give a folder with images/ and masks/ (PNGs of the same names)"
            )
    images = _by_name(home / "images", image_suffixes())
    if not images:
        raise InputError(f"{home / 'images'} holds no image ({', '.join(FORMATS)}); put images there")
    masks = _by_name(home / "masks", frozenset({".png"}))
    items = []
    for name in sorted({**images, **masks}):
        image = images.get(name, home / "images" / f"{name}.jpg")
        items.append((name, LabelledImage(image, masks.get(name, home / "masks" / f"{name}.png"))))
    return LabelledImages(items, _read_class_names(home), void)


def read_labels(path: str | os.PathLike[str]) -> Tensor:
    """Reads a mask: palette indices, or grey values of 1, 8 or 16 bits.

    Returns:
        int64 (height, width).

    Raises:
        InputError: If the file is missing, damaged, or has colours in place of labels.
        MissingExtraError: If Pillow is not installed.
    """
    pillow: Any = require("PIL.Image", extra="images")
    try:
        with pillow.open(path, formats=MASK_FORMATS) as image:
            mode = image.mode
            values = np.array(image)  # the indices of a palette image
    except FileNotFoundError as error:
        raise InputError(f"there is no mask {path}; add it, or remove its image") from error
    except Exception as error:  # Pillow's decoders raise many kinds of errors on damaged data
        raise InputError(
            f"the mask {path} is damaged or not an image in a lossless format ({', '.join(MASK_FORMATS)}): "
            f"{type(error).__name__}: {error}; save it as a palette or grey PNG"
        ) from error
    if mode not in ("1", "L", "P", "I", "I;16", "I;16B"):
        raise InputError(
            f"the mask {path} has mode {mode}: colours, not labels; save it as a palette or grey PNG whose values are "
            "labels"
        )
    return torch.from_numpy(values.astype(np.int64))


def _by_name(folder: Path, suffixes: frozenset[str]) -> dict[str, Path]:
    """The files with these suffixes (in any case) in a folder and below it, by name without suffix."""
    found: dict[str, Path] = {}
    for path in sorted(files_below(folder)):
        if path.suffix.lower() in suffixes:
            name = path.relative_to(folder).with_suffix("").as_posix()
            if name in found:
                raise InputError(f"{found[name]} and {path} differ only in their suffix; rename one")
            found[name] = path
    return found


def _read_class_names(home: Path) -> dict[int, str] | None:
    path = home / "classes.txt"
    if not path.exists():
        return None
    try:
        lines = [line.split(maxsplit=1) for line in path.read_text().splitlines() if line.strip()]
        names = {int(label): name.strip() for label, name in lines}
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} cannot be read: {error}; it must be text with one class per line: label, then name"
        ) from error
    if len({*names.values()}) != len(lines) or 0 in names:
        raise InputError(f"{path}: labels and names must be unique, and 0 is background; it has {names}")
    return names
