"""Objects cut out by alpha and background images, from what anyone can install.

Debian packages and a generator are enough to train and to measure: photographs of objects
(`tuxpaint-stamps-default`), garments (`dataset-fashion-mnist`), pictures to paste them over
(`plasma-workspace-wallpapers`, `gnome-backgrounds`), and coloured noise.
"""

from __future__ import annotations

import gzip
import hashlib
import re
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError, require

STAMPS = Path("/usr/share/tuxpaint/stamps")
FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
WALLPAPERS = (Path("/usr/share/wallpapers"), Path("/usr/share/backgrounds/gnome"))

HELD_OUT_OBJECTS = 0.15
HELD_OUT_PICTURES = 0.2
INK = 4  # of 255; a garment is brighter: up to here are the specks that resampling left around it
SMALLEST = 48  # pixels; a photograph with a shorter longer side would be a blur when pasted

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

Array = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Objects:
    """Cut-out objects, one image each.

    Attributes:
        images: uint8 (count, 4, side, side), RGBA with straight (not premultiplied) alpha. The object is
            cropped tightly, keeps its aspect, and is centred in a transparent square that it just fits.
        labels: int64 (count,), each an index into `class_names`.
        class_names: The names of this split's classes.
    """

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]


def photographs(split: Literal["train", "held_out", "all"], root: Path = STAMPS, side: int = 128) -> Objects:
    """Real photographs of objects from Tux Paint's stamps; every object is a class of its own.

    Drawings, signs, near-rectangles, tiny images and mirrored copies are left out. Held out are 15% of the
    objects, relatives together ("gnu-baby" goes where "gnu-stand" goes), chosen by a hash of their names.

    Args:
        split: "train", "held_out" or "all".
        root: Folder of the Debian package tuxpaint-stamps-default, or any tree of RGBA PNG files.
        side: Side of the returned squares, in pixels.

    Raises:
        InputError: If the folder is missing or holds no photograph, a picture is unreadable, or an argument
            is bad.
        MissingExtraError: If Pillow is not installed.
    """
    _check_choice("split", split, ("train", "held_out", "all"))
    check_positive("side", side)
    _check_folder(root, "tuxpaint-stamps-default")
    found: dict[str, Any] = {}
    seen: set[bytes] = set()
    for path in sorted(root.rglob("*.png")):
        name = path.relative_to(root).with_suffix("").as_posix()
        # A mirrored or copied stamp would put a training object among the held-out ones.
        if name.endswith("_mirror") or name in DRAWINGS or NOT_PHOTOGRAPHS.intersection(name.split("/")[:-1]):
            continue
        cut = _crop_to_alpha(_open(path, "RGBA"))
        if cut is None or cut.tobytes() in seen or not _is_photograph(np.asarray(cut)):
            continue
        found[name] = cut
        seen.add(cut.tobytes())
    held_out = _held_out(found, HELD_OUT_OBJECTS, family=_family)
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

    The alpha is where the ink is, with holes filled: the black front of a shirt belongs to the shirt.

    Args:
        split: "train" (60,000 images) or "test" (10,000).
        root: Folder with the four idx files, gzipped or not; the Debian package is dataset-fashion-mnist.
        side: Side of the returned squares, in pixels.

    Raises:
        InputError: If the folder or a file is missing, a file is not a valid idx file, or an argument is bad.
    """
    _check_choice("split", split, ("train", "test"))
    check_positive("side", side)
    _check_folder(root, "dataset-fashion-mnist")
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


def wallpapers(
    split: Literal["train", "held_out"],
    roots: Sequence[Path] = WALLPAPERS,
    count: int = 2000,
    side: int = 128,
    seed: int = 0,
) -> Tensor:
    """Square crops of wallpapers, at every scale from fine texture to nearly the whole picture.

    A fifth of the pictures is held out, whole: no training crop shares a picture with a held-out crop, and
    one picture at several resolutions, or in light and dark, is one picture.

    Args:
        split: "train" or "held_out".
        roots: Folders to search for PNG, JPEG and WebP files; by default those of the Debian packages
            plasma-workspace-wallpapers and gnome-backgrounds.
        count: Number of crops; every picture gives as many as any other (give or take one).
        side: Side of each crop after resizing, in pixels.
        seed: Seed of the crops; it does not change which pictures are held out.

    Returns:
        uint8 (count, 3, side, side).

    Raises:
        InputError: If a folder is missing, a picture is unreadable, nothing is found, or an argument is bad.
        MissingExtraError: If Pillow is not installed.
    """
    _check_choice("split", split, ("train", "held_out"))
    check_positive("side", side)
    check_positive("count", count)
    pictures: dict[str, list[Path]] = defaultdict(list)
    for root in roots:
        _check_folder(root, "plasma-workspace-wallpapers gnome-backgrounds")
        for path in sorted(root.rglob("*")):
            if path.suffix.lower() in {".png", ".jpg", ".jpeg", ".webp"} and path.stem != "screenshot":
                pictures[_picture_name(path)].append(path)
    held_out = _held_out(pictures, HELD_OUT_PICTURES, family=str)
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


# --- what is held out ---------------------------------------------------------------------------------------


def _held_out(names: Iterable[str], share: float, family: Callable[[str], str]) -> set[str]:
    """A share of the names, whole families only, in the order of the families' hashes."""
    families: dict[str, list[str]] = defaultdict(list)
    for name in names:
        families[family(name)].append(name)
    wanted = round(share * sum(map(len, families.values())))
    chosen: set[str] = set()
    for key in sorted(families, key=lambda key: hashlib.sha256(key.encode()).digest()):
        if len(chosen) + len(families[key]) <= wanted:
            chosen.update(families[key])
    return chosen


def _family(name: str) -> str:
    """The first word of a stamp's file name: "animals/mammals/bovines/gnu-baby" is a "gnu"."""
    stem = name.rsplit("/", 1)[-1].lower()
    return re.split(r"[-_0-9]", stem, maxsplit=1)[0] or stem


# --- photographs of objects ---------------------------------------------------------------------------------


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
    """The picture cropped to where it can be seen (alpha over 10%), or None if that is nowhere."""
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


# --- wallpapers ---------------------------------------------------------------------------------------------


def _picture_name(path: Path) -> str:
    """One name for all files that show one picture, wherever its folder lies: what is held out hangs on it.

    Plasma keeps sizes and shades of a picture in <name>/contents/...; GNOME writes <name>-l and <name>-d.
    """
    if "contents" in path.parts:
        return path.parts[path.parts.index("contents") - 1]
    return f"{path.parent.name}/{re.sub(r'-[ld]$', '', path.stem)}"


def _shades(paths: Sequence[Path]) -> list[list[Path]]:
    """The files of one picture, those that differ in size alone together."""
    shades: dict[Path, list[Path]] = defaultdict(list)
    for path in paths:
        shades[path.parent if "contents" in path.parts else path].append(path)
    return list(shades.values())


def _open_small(paths: Sequence[Path], long_side: int) -> Any:
    """The smallest file of at least `long_side` pixels, or else the largest, as RGB reduced to about that."""
    sizes = {path: max(_open(path).size) for path in paths}
    path = min(paths, key=lambda path: (sizes[path] < long_side, abs(sizes[path] - long_side)))
    picture = _open(path, "RGB", long_side)
    return picture.reduce(max(1, max(picture.size) // long_side))


def _busy_crops(picture: Any, side: int, random: np.random.Generator) -> Iterator[Array]:
    """Square crops (3, side, side) without end; each is the best of three, for wallpapers are half empty."""
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


def _open(path: Path, mode: str | None = None, long_side: int = 0) -> Any:
    """Decodes a picture into a mode, JPEGs straight to about `long_side` pixels; no mode: only the header."""
    image_module = require("PIL.Image", "train")
    try:
        with image_module.open(path) as picture:
            if long_side:
                picture.draft(mode, (long_side, long_side))
            return picture.convert(mode) if mode else picture
    except (OSError, SyntaxError, ValueError, image_module.DecompressionBombError) as error:
        raise InputError(f"cannot read the picture {path}: {error}; replace or remove the file") from error


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
    """Ink and all that it encloses; bool (count, h, w) to the same shape.

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


# --- checks -------------------------------------------------------------------------------------------------


def _check_choice(what: str, value: object, known: tuple[str, ...]) -> None:
    if value not in known:
        raise InputError(f"{what} is {value!r}; expected one of {', '.join(map(repr, known))}")


def check_positive(what: str, value: int) -> None:
    """Raises InputError if a count or a size is below 1."""
    if value < 1:
        raise InputError(f"{what} is {value}; expected at least 1")


def _check_folder(root: Path, packages: str) -> None:
    if not root.is_dir():
        raise InputError(f"{root} is not a folder: apt-get install {packages}, or pass the folder as root")
