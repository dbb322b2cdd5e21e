"""Backgrounds for composites: crops of wallpapers from Debian packages, and coloured noise.

The packages are `plasma-workspace-wallpapers` and `gnome-backgrounds`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from recipes.files import Array, check_choice, check_folder, held_out_of, open_picture
from whitebox_crate.errors import InputError, require
from whitebox_crate.training.batches import check_positive

WALLPAPERS = (Path("/usr/share/wallpapers"), Path("/usr/share/backgrounds/gnome"))

HELD_OUT_PICTURES = 0.2


def wallpapers(
    split: Literal["train", "held_out"],
    roots: Sequence[Path] = WALLPAPERS,
    count: int = 2000,
    side: int = 128,
    seed: int = 0,
) -> Tensor:
    """Square crops of wallpapers, at every scale from fine texture to nearly the whole picture.

    A fifth of the pictures is held out, so no training crop shares a picture with a held-out crop. Several
    resolutions of a picture, or its light and dark versions, count as one picture.

    Args:
        split: "train" or "held_out".
        roots: Folders to search for PNG, JPEG and WebP files; by default those of the Debian packages
            plasma-workspace-wallpapers and gnome-backgrounds.
        count: Number of crops; all pictures give the same number, plus or minus one.
        side: Side of each crop after resizing, in pixels.
        seed: Seed of the crops; it does not change which pictures are held out.

    Returns:
        uint8 (count, 3, side, side).

    Raises:
        InputError: If a folder is missing, a picture is unreadable, nothing is found, or an argument is bad.
        MissingExtraError: If Pillow is not installed.
    """
    check_choice("split", split, ("train", "held_out"))
    check_positive("side", side)
    check_positive("count", count)
    pictures: dict[str, list[Path]] = defaultdict(list)
    for root in roots:
        check_folder(root, "plasma-workspace-wallpapers gnome-backgrounds")
        for path in sorted(root.rglob("*")):
            if path.suffix.lower() in {".png", ".jpg", ".jpeg", ".webp"} and path.stem != "screenshot":
                pictures[_picture_name(path)].append(path)
    held_out = held_out_of(pictures, HELD_OUT_PICTURES, family=str)
    chosen = [name for name in sorted(pictures) if (name in held_out) == (split == "held_out")]
    if not chosen:
        raise InputError(
            f"no {split} picture among the {len(pictures)} under {', '.join(map(str, roots))}; expected "
            "five PNG, JPEG or WebP files, as in plasma-workspace-wallpapers and gnome-backgrounds"
        )
    random = np.random.default_rng(seed)
    crops = np.empty((count, 3, side, side), np.uint8)
    for first, name in enumerate(chosen[:count]):
        shades = _shades(pictures[name])
        for nth, files in enumerate(shades):
            if places := range(first, count, len(chosen))[nth :: len(shades)]:
                picture = _open_small(files, long_side=1280)
                for place, crop in zip(places, _busy_crops(picture, side, random), strict=False):
                    crops[place] = crop
    return torch.from_numpy(crops)


def noise_backgrounds(count: int, side: int, seed: int) -> Tensor:
    """Coloured noise with spectra from nearly white to cloudy: 1 / f^a, a from 0.3 to 2 per image.

    Three independent fields are mixed into RGB by a random matrix, so that hues vary within an image and
    palettes between images; brightness and contrast are random too.

    Args:
        count: Number of images.
        side: Side in pixels.
        seed: Seed of the generator.

    Returns:
        uint8 (count, 3, side, side).

    Raises:
        InputError: If `count` or `side` is not positive.
    """
    check_positive("count", count)
    check_positive("side", side)
    generator = torch.Generator().manual_seed(seed)
    frequency = torch.hypot(torch.fft.fftfreq(side)[:, None], torch.fft.rfftfreq(side)[None, :])
    frequency[0, 0] = torch.inf  # no constant part
    images = torch.empty(count, 3, side, side, dtype=torch.uint8)
    for part in images.split(256):  # bounded memory
        n = len(part)
        slope = 0.3 + 1.7 * torch.rand(n, 1, 1, 1, generator=generator)
        white = torch.fft.rfft2(torch.randn(n, 3, side, side, generator=generator))
        fields = torch.fft.irfft2(white / frequency**slope, s=(side, side))
        fields = fields / fields.std((2, 3), keepdim=True, correction=0).clamp_min(1e-6)
        mixing = F.normalize(torch.randn(n, 3, 3, generator=generator), dim=-1)
        level = 0.2 + 0.6 * torch.rand(n, 3, 1, 1, generator=generator)
        contrast = 0.05 + 0.25 * torch.rand(n, 1, 1, 1, generator=generator)
        colours = level + contrast * torch.einsum("nij,njhw->nihw", mixing, fields)
        part.copy_((255 * colours.clamp(0, 1)).round())
    return images


# --- wallpapers ---------------------------------------------------------------------------------------------


def _picture_name(path: Path) -> str:
    """One name for all files of a picture, wherever its folder lies. It decides what is held out.

    Plasma keeps sizes and shades of a picture in <name>/contents/...; GNOME writes <name>-l and <name>-d.
    """
    if "contents" in path.parts:
        return path.parts[path.parts.index("contents") - 1]
    return f"{path.parent.name}/{re.sub(r'-[ld]$', '', path.stem)}"


def _shades(paths: Sequence[Path]) -> list[list[Path]]:
    """The files of one picture, grouped if they differ only in size."""
    shades: dict[Path, list[Path]] = defaultdict(list)
    for path in paths:
        shades[path.parent if "contents" in path.parts else path].append(path)
    return list(shades.values())


def _open_small(paths: Sequence[Path], long_side: int) -> Any:
    """The smallest file of at least `long_side` pixels, or else the largest, as RGB reduced to about that."""
    sizes = {path: max(open_picture(path).size) for path in paths}
    path = min(paths, key=lambda path: (sizes[path] < long_side, abs(sizes[path] - long_side)))
    picture = open_picture(path, "RGB", long_side)
    return picture.reduce(max(1, max(picture.size) // long_side))


def _busy_crops(picture: Any, side: int, random: np.random.Generator) -> Iterator[Array]:
    """Square crops (3, side, side) without end. Each is the best of three, because wallpapers are half empty."""
    resampling = require("PIL.Image", "train").Resampling.BICUBIC
    # Summed-area table of the steps between neighbours: the edges in any box are four look-ups.
    grey = np.asarray(picture.convert("L"), np.float32)
    steps = np.abs(np.diff(grey, axis=1, prepend=grey[:, :1]))
    table = np.pad(steps.cumsum(0, np.float64).cumsum(1), ((1, 0), (1, 0)))
    finest = min(side, *picture.size)
    largest = max(finest, 0.95 * min(picture.size))
    while True:
        edge = (finest * (largest / finest) ** random.random(3))[:, None]
        corner = random.random((3, 2)) * (np.array(picture.size) - edge)
        (left, top), (right, bottom) = corner.astype(int).T, (corner + edge).astype(int).T
        edges = table[bottom, right] - table[top, right] - table[bottom, left] + table[top, left]
        best = int(np.argmax(edges / edge[:, 0] ** 2))
        box = (*corner[best], *(corner + edge)[best])
        crop = picture.resize((side, side), resampling, box=box, reducing_gap=2.0)
        yield np.asarray(crop, np.uint8).transpose(2, 0, 1)
