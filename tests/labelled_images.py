"""Small data sets in the layouts of VOC 2012 and of a plain folder: noise with blocks of labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

SIZES = [(40, 52), (52, 40), (48, 48)]  # (height, width)


def noise(index: int) -> Image.Image:
    height, width = SIZES[index % 3]
    pixels = np.random.default_rng(index).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def labels(index: int) -> npt.NDArray[np.uint8]:
    """Two classes of which one is in every image, with a rim of void."""
    height, width = SIZES[index % 3]
    mask = np.zeros((height, width), dtype=np.uint8)
    mask[4:30, 6:24] = 255
    mask[6:28, 8:22] = 15
    if index % 2:
        mask[10:36, 26:38] = 1 + index
    return mask


def save_mask(mask: npt.NDArray[np.uint8], path: Path) -> None:
    """A palette PNG, as VOC's are."""
    image = Image.fromarray(mask)
    image.putpalette([(index * 37 + shift) % 256 for index in range(256) for shift in (0, 80, 160)])
    image.save(path)


def make_voc(root: Path, count: int = 6) -> list[str]:
    """VOC's layout with a list val.txt, which is not in the order of names."""
    home = root / "VOCdevkit" / "VOC2012"
    lists = home / "ImageSets" / "Segmentation"
    for folder in (home / "JPEGImages", home / "SegmentationClass", lists):
        folder.mkdir(parents=True)
    names = [f"2007_{index:06}" for index in reversed(range(count))]
    for index, name in enumerate(names):
        noise(index).save(home / "JPEGImages" / f"{name}.jpg")
        save_mask(labels(index), home / "SegmentationClass" / f"{name}.png")
    (lists / "val.txt").write_text("".join(f"{name}\n" for name in names))
    return names


def make_folder(root: Path, count: int = 6) -> list[str]:
    """images/ and masks/ of grey labels, without void."""
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    names = [f"photo {index:02}" for index in range(count)]
    for index, name in enumerate(names):
        noise(index).save(root / "images" / f"{name}.jpg")
        mask = labels(index)
        Image.fromarray(np.where(mask == 255, 0, mask)).save(root / "masks" / f"{name}.png")
    return names
