"""A toy data set that recipes/toy.py makes from stamps and wallpapers of noise, for any machine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from recipes import toy


def write_sources(folder: Path) -> list[str]:
    """Ellipses of noise, in two folders of stamps, and smooth wallpapers; the options that name them."""
    random = np.random.default_rng(0)
    for index in range(10):
        height, width = random.integers(50, 80, 2)
        y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
        rgba = random.integers(0, 256, (height, width, 4), np.uint8)
        rgba[..., 3] = 255 * (x**2 + y**2 <= 1)
        path = folder / "stamps" / ("birds", "tools")[index % 2] / f"{'abcdefghij'[index]}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rgba).save(path)
    (folder / "wallpapers").mkdir()
    for index in range(6):
        small = Image.fromarray(random.integers(0, 256, (4, 5, 3), np.uint8))
        small.resize((100, 80), Image.Resampling.BICUBIC).save(folder / "wallpapers" / f"{index}.png")
    return ["--stamps", str(folder / "stamps"), "--wallpapers", str(folder / "wallpapers"), "--split", "train"]


def write_toy(folder: Path, images: int = 6, size: int = 48, seed: int = 0) -> Path:
    """A data set of both layouts, folder/toy/VOC2012 and folder/toy/COCO."""
    words = ["--images", str(images), "--size", str(size), "--seed", str(seed), *write_sources(folder)]
    toy.main(["--out", str(folder / "toy"), *words])
    return folder / "toy"
