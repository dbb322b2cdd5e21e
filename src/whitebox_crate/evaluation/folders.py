"""Images with label masks on a disk: Pascal VOC 2012 as it is published, and any folder of images and mask PNGs."""

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

MASK_FORMATS = ("PNG", "TIFF", "BMP", "GIF", "PPM")  # lossless, and none for which Pillow runs another program
VOID = 255  # the label of VOC's pixels that belong to nothing: edges of objects, and objects too hard
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
    """Where an image and its mask lie; nothing is read before `read`.

    Attributes:
        image: Any image that Pillow reads.
        mask: PNG of a label for each pixel.
    """

    image: Path
    mask: Path

    def content(self) -> str:
        """What tells the contents of the two files from any others (`records.content_of`).

        Raises:
            InputError: If one cannot be read.
        """
        return content_of(self.image, self.mask)

    def read(self) -> tuple[Image, Tensor]:
        """Reads both; the image as its pixels are stored, or upright by its EXIF tag if the mask has that size.

        Returns:
            The Pillow image in mode RGB, and its labels, int64 (height, width).

        Raises:
            InputError: If one is missing, unreadable or damaged, their sizes differ, or the mask has colours in place
                of labels.
            MissingExtraError: If Pillow is not installed.
        """
        labels = read_labels(self.mask)
        image = load_image(self.image, upright=False)
        if labels.shape != (image.height, image.width):  # masks drawn upright have the upright size
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
    """Images with masks, and what their labels mean.

    Attributes:
        items: (name of the image, its files).
        class_names: What each label means; None if labels are just numbers. 0 is background.
        void: The label of pixels that count for nothing, if there is one.
    """

    items: Sequence[tuple[str, LabelledImage]]
    class_names: Mapping[int, str] | None
    void: int | None

    def check_files(self) -> None:
        """Looks whether all files are there, before hours are spent on the others.

        Raises:
            InputError: If some are not; the message names the first ones.
        """
        missing = [path for _, pair in self.items for path in (pair.image, pair.mask) if not path.is_file()]
        if missing:
            raise InputError(
                f"{len(missing)} files of {len(self.items)} images and masks are missing: "
                f"{listed(map(str, missing))}; add them"
            )


def read_voc(root: str | os.PathLike[str], split: str = "val") -> LabelledImages:
    """The images of a segmentation list of Pascal VOC 2012, or of a data set in its layout.

    Labels are 1 to 20 for `VOC_CLASSES`, 0 for background and 255 (`VOID`) for pixels that do not count. A data set
    with other classes names them in classes.txt beside JPEGImages, a line each: the label, then the name.

    Args:
        root: The folder with JPEGImages, SegmentationClass and ImageSets, or one that has it as VOC2012 or
            VOCdevkit/VOC2012.
        split: Name of a list in ImageSets/Segmentation: "train", "val" (1,449 images), "trainval", or your own.

    Returns:
        The images, in the order of the list.

    Raises:
        InputError: If the layout is not there, the list is empty, or classes.txt is no such list.
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
        raise UnknownNameError.of(f"list of images in {lists}", split, known, "A list is a text file, a name a line.")
    try:
        names = path.read_text().split()
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}; it is text, a name a line") from error
    if not names:
        raise InputError(f"{path} is empty; it should hold the name of an image a line")
    items = [(name, LabelledImage(images / f"{name}.jpg", masks / f"{name}.png")) for name in names]
    return LabelledImages(items, _read_class_names(home) or dict(enumerate(VOC_CLASSES, start=1)), VOID)


def read_folder(root: str | os.PathLike[str], void: int | None = None) -> LabelledImages:
    """The images of a folder, each with the mask PNG of the same name.

    `images/a.jpg` belongs to `masks/a.png`; folders within are fine. Of a mask, palette indices or grey values are the
    labels, 0 for background. What they mean may stand in classes.txt beside the two folders, a line each: the label,
    then the name.

    Args:
        root: The folder with `images` and `masks`.
        void: The label of pixels that count for nothing, if there is one.

    Returns:
        Every image and every mask, so that one without the other is noticed; named without suffix, sorted by name.

    Raises:
        InputError: If a folder is missing, there is no image, two images or masks have one name, or classes.txt is no
            such list.

    Example:
        >>> data = read_folder("data")  # data/images/photo.jpg and data/masks/photo.png
        >>> [name for name, files in data.items]
        ['photo']
    """
    home = Path(root)
    for folder in (home / "images", home / "masks"):
        if not folder.is_dir():
            raise InputError(
                f"there is no folder {folder}; give a folder with images/ and masks/, PNGs of the same names"
            )
    images = _by_name(home / "images", image_suffixes())
    if not images:
        raise InputError(f"{home / 'images'} holds no image ({', '.join(FORMATS)}); put them there")
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
            values = np.array(image)  # of a palette image, its indices
    except FileNotFoundError as error:
        raise InputError(f"there is no mask {path}; add it, or take its image out") from error
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged data
        raise InputError(
            f"the mask {path} is damaged or no image: {type(error).__name__}: {error}; masks are of lossless formats "
            f"{', '.join(MASK_FORMATS)}: save it as a palette or grey PNG"
        ) from error
    if mode not in ("1", "L", "P", "I", "I;16", "I;16B"):
        raise InputError(
            f"the mask {path} is of mode {mode}, colours rather than labels; save it as a palette or grey PNG, each "
            "value a label"
        )
    return torch.from_numpy(values.astype(np.int64))


def _by_name(folder: Path, suffixes: frozenset[str]) -> dict[str, Path]:
    """The files of a folder and those below with these suffixes, in any case, by name without suffix."""
    found: dict[str, Path] = {}
    for path in sorted(files_below(folder)):
        if path.suffix.lower() in suffixes:
            name = path.relative_to(folder).with_suffix("").as_posix()
            if name in found:
                raise InputError(f"{found[name]} and {path} differ by their suffix alone; rename one")
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
            f"{path} cannot be read: {error}; it is text, a line for each class: label, then name"
        ) from error
    if len({*names.values()}) != len(lines) or 0 in names:
        raise InputError(f"{path}: labels and names are unique, and 0 is background; it has {names}")
    return names
