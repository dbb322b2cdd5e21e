"""Objects cut out by alpha and background images, from what anyone can install.

Three Debian packages and one built-in generator are enough to train and to measure: photographs of objects
(`tuxpaint-stamps-default`), garments (`dataset-fashion-mnist`), pictures to paste them over
(`plasma-workspace-wallpapers`, `gnome-backgrounds`) and coloured noise.
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
from torch import Tensor

from whitebox_crate.errors import InputError, require

STAMPS = Path("/usr/share/tuxpaint/stamps")
FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
WALLPAPERS = (Path("/usr/share/wallpapers"), Path("/usr/share/backgrounds"))

HELD_OUT_OBJECTS = 0.15
HELD_OUT_PICTURES = 0.2

GARMENTS = (
    "t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip

# Folders of the stamps that hold signs, drawings and renderings, or things without an outline (fire, fireworks).
NOT_PHOTOGRAPHS = frozenset(
    "symbols cartoon flags roadsigns naturalforces easter hanukkah newyears moon planets".split()
)
# Drawings that pass every rule of `_is_photograph`, and the lettering of a police car without the car.
DRAWINGS = frozenset(
    {"clothes/button", "seasonal/christmas/Santa", "seasonal/christmas/stocking", "vehicles/emergency/sedan_police"}
)
SMALLEST = 48  # pixels on the longer side

Array = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Objects:
    """Cut-out objects, one image each.

    Attributes:
        images: uint8 (count, 4, side, side), RGBA with straight (not premultiplied) alpha; the object is cropped
            tightly, keeps its aspect, and is centred in a transparent square whose side is its longer one.
        labels: int64 (count,), each an index into `class_names`.
        class_names: The names of this split's classes.
    """

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]


def photographs(
    split: Literal["train", "held_out", "all"], root: Path = STAMPS, side: int = 128
) -> Objects:
    """Real photographs of objects from Tux Paint's stamps; every object is a class of its own.

    Drawings, signs, near-rectangles, tiny images and mirrored copies are left out. Held out are 15% of the
    objects, relatives together ("gnu-baby" goes where "gnu-stand" goes), chosen by a hash of their names.

    Args:
        split: "train", "held_out" or "all".
        root: Folder of the Debian package tuxpaint-stamps-default, or any tree of RGBA PNG files.
        side: Side of the returned squares, in pixels.

    Raises:
        InputError: If the folder is missing or holds no photograph, a picture is unreadable, or an argument is bad.
        MissingExtraError: If Pillow is not installed.
    """
    _check_choice("split", split, ("train", "held_out", "all"))
    _check_positive("side", side)
    _check_folder(root, "tuxpaint-stamps-default")
    found: dict[str, Any] = {}
    seen: set[bytes] = set()
    for path in sorted(root.rglob("*.png")):
        name = path.relative_to(root).with_suffix("").as_posix()
        # A mirrored or copied stamp would put a training object among the held-out ones.
        if name.endswith("_mirror") or name in DRAWINGS or NOT_PHOTOGRAPHS & set(name.split("/")[:-1]):
            continue
        cut = _crop_to_alpha(_open(path, "RGBA"))
        if cut is None or cut.tobytes() in seen or not _is_photograph(np.asarray(cut)):
            continue
        found[name] = cut
        seen.add(cut.tobytes())
    held_out = _held_out(found, HELD_OUT_OBJECTS, family=_family)
    names = [n for n in found if split == "all" or (n in held_out) == (split == "held_out")]
    if not names:
        raise InputError(
            f"no photograph of an object for split {split!r} under {root}: expected RGBA PNG files of at least "
            f"{SMALLEST} px, as the Debian package tuxpaint-stamps-default has them"
        )
    images = np.stack([_fit_square(found[n], side) for n in names])
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
    _check_positive("side", side)
    _check_folder(root, "dataset-fashion-mnist")
    prefix = {"train": "train", "test": "t10k"}[split]
    grey = _read_idx(root, f"{prefix}-images-idx3-ubyte", dims=3)
    labels = _read_idx(root, f"{prefix}-labels-idx1-ubyte", dims=1)
    if len(grey) != len(labels) or (len(labels) and labels.max() >= len(GARMENTS)):
        raise InputError(
            f"{root}: {len(grey)} images but {len(labels)} labels up to {labels.max(initial=0)}; expected one "
            f"label in 0..{len(GARMENTS) - 1} for each; install the files again"
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

    A fifth of the pictures is held out, whole: no training crop shares a picture with a held-out crop, and one
    picture at several resolutions, or in light and dark, is one picture.

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
    _check_positive("side", side)
    _check_positive("count", count)
    require("PIL.Image", "images")
    pictures: dict[str, list[Path]] = defaultdict(list)
    for root in roots:
        _check_folder(root, "plasma-workspace-wallpapers gnome-backgrounds")
        for path in sorted(root.rglob("*")):
            if path.suffix.lower() in {".png", ".jpg", ".jpeg", ".webp"} and path.stem != "screenshot":
                pictures[_picture_name(path.relative_to(root))].append(path)
    held_out = _held_out(pictures, HELD_OUT_PICTURES, family=str)
    chosen = [n for n in sorted(pictures) if (n in held_out) == (split == "held_out")]
    if not chosen:
        raise InputError(
            f"no {split} picture among the {len(pictures)} under {', '.join(map(str, roots))}; expected at least "
            "five PNG, JPEG or WebP files, as plasma-workspace-wallpapers and gnome-backgrounds have them"
        )
    random = np.random.default_rng(seed)
    crops = np.empty((count, 3, side, side), np.uint8)
    for first, name in enumerate(chosen[:count]):
        places = range(first, count, len(chosen))
        shades = _shades(pictures[name])
        for nth, shade in enumerate(shades[: len(places)]):
            picture = _open_small(shade, long_side=1280)
            wanted = places[nth :: len(shades)]
            for place, crop in zip(wanted, _busy_crops(picture, len(wanted), side, random), strict=True):
                crops[place] = crop
    return torch.from_numpy(crops)


def noise_backgrounds(count: int, side: int, seed: int) -> Tensor:
    """Coloured noise with natural and unnatural spectra, 1 / f^a with a from 0.3 to 2 per image.

    Three independent fields are mixed into RGB by a random matrix, so that hues vary within an image and images
    differ in palette; each is then shifted and scaled at random.

    Args:
        count: Number of images.
        side: Side in pixels.
        seed: Seed of the generator.

    Returns:
        uint8 (count, 3, side, side).

    Raises:
        InputError: If `count` or `side` is not positive.
    """
    _check_positive("count", count)
    _check_positive("side", side)
    generator = torch.Generator().manual_seed(seed)
    frequency = torch.hypot(torch.fft.fftfreq(side)[:, None], torch.fft.rfftfreq(side)[None, :])
    frequency[0, 0] = 1.0  # the mean is removed below
    images = torch.empty(count, 3, side, side, dtype=torch.uint8)
    for part in images.split(256):  # bounded memory; parts of one seed follow each other
        n = len(part)
        white = torch.randn(n, 3, side, side, generator=generator)
        slope = 0.3 + 1.7 * torch.rand(n, 1, 1, 1, generator=generator)
        fields = torch.fft.irfft2(torch.fft.rfft2(white) / frequency**slope, s=(side, side))
        fields = fields - fields.mean((-2, -1), keepdim=True)
        fields = fields / fields.std((-2, -1), keepdim=True, correction=0).clamp_min(1e-6)
        mixing = torch.nn.functional.normalize(torch.randn(n, 3, 3, generator=generator), dim=-1)
        colours = torch.einsum("nij,njhw->nihw", mixing, fields)
        level = 0.2 + 0.6 * torch.rand(n, 3, 1, 1, generator=generator)
        contrast = 0.05 + 0.25 * torch.rand(n, 1, 1, 1, generator=generator)
        part.copy_((level + contrast * colours).clamp(0, 1).mul(255).round())
    return images


# --- crops of wallpapers ------------------------------------------------------------------------------------


def _picture_name(path: Path) -> str:
    """One name for all files that show one picture.

    Plasma keeps sizes and shades of a picture in <name>/contents/...; GNOME writes <name>-l and <name>-d.
    """
    if "contents" in path.parts:
        return "/".join(path.parts[: path.parts.index("contents")])
    return re.sub(r"-[ld]$", "", path.with_suffix("").as_posix())


def _shades(paths: Sequence[Path]) -> list[list[Path]]:
    """The files of one picture, those that differ in size alone together."""
    shades: dict[Path, list[Path]] = defaultdict(list)
    for path in paths:
        shades[path.parent if "contents" in path.parts else path].append(path)
    return list(shades.values())


def _busy_crops(picture: Any, count: int, side: int, random: np.random.Generator) -> Iterator[Array]:
    """Square crops (3, side, side), each the one of three random ones with most edges: wallpapers are half empty."""
    grey = np.asarray(picture.convert("L"), np.float32)
    # Summed-area table of the steps between neighbours: the edges in any box are four look-ups.
    steps = np.abs(np.diff(grey, axis=1, prepend=grey[:, :1]))
    table = np.pad(steps.cumsum(0, np.float64).cumsum(1), ((1, 0), (1, 0)))
    shorter = min(picture.size)
    finest = min(side, shorter)  # at most one pixel of the picture for one of the crop, but for tiny pictures
    largest = max(finest, 0.95 * shorter)
    for _ in range(count):
        edge = (finest * (largest / finest) ** random.random(3))[:, None]
        corner = random.random((3, 2)) * (np.array(picture.size) - edge)
        (left, top), (right, bottom) = corner.astype(int).T, (corner + edge).astype(int).T
        edges = table[bottom, right] - table[top, right] - table[bottom, left] + table[top, left]
        best = int(np.argmax(edges / edge[:, 0] ** 2))
        box = (*corner[best], *(corner + edge)[best])
        resampling = require("PIL.Image", "images").Resampling.BICUBIC
        crop = picture.resize((side, side), resampling, box=box, reducing_gap=2.0)
        yield np.asarray(crop, np.uint8).transpose(2, 0, 1)


# --- which stamps are photographs ---------------------------------------------------------------------------


def _is_photograph(rgba: Array) -> bool:
    """Whether a tight RGBA crop (h, w, 4) looks like a photograph of one solid object."""
    solid = rgba[..., 3] > 127
    coverage = solid.mean()
    # Smaller ones would be blurs when pasted; below 10% are goal posts and sparks, above 88% slabs and cards.
    if max(solid.shape) < SMALLEST or not 0.1 <= coverage <= 0.88:
        return False
    # Ghosts, glasses and glows are see-through: an object has nearly opaque insides.
    if (rgba[..., 3] > 230).sum() < 0.65 * (rgba[..., 3] > 25).sum():
        return False
    # Drawings are filled with flat colour: neighbouring pixels are exactly equal. Sensors and JPEG leave noise.
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
    # Pillow premultiplies while it resizes RGBA, so that the colour under alpha 0 does not bleed into the edge.
    small = np.asarray(picture.resize((width, height), require("PIL.Image", "images").Resampling.BICUBIC))
    square = np.zeros((4, side, side), np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    square[:, top : top + height, left : left + width] = small.transpose(2, 0, 1)
    return square


# --- what is held out ---------------------------------------------------------------------------------------


def _held_out(names: Iterable[str], share: float, family: Callable[[str], str]) -> set[str]:
    """A share of the names, whole families only, in the order of the families' hashes."""
    families: dict[str, list[str]] = defaultdict(list)
    for name in names:
        families[family(name)].append(name)
    wanted = round(share * sum(map(len, families.values())))
    chosen: set[str] = set()
    for _, members in sorted(families.items(), key=lambda item: hashlib.sha256(item[0].encode()).digest()):
        if len(chosen) + len(members) <= wanted:
            chosen.update(members)
    return chosen


def _family(name: str) -> str:
    """The first word of a stamp's file name: "animals/mammals/bovines/gnu-baby" is a "gnu"."""
    stem = name.rsplit("/", 1)[-1].lower()
    return re.split(r"[-_0-9]", stem, maxsplit=1)[0] or stem


# --- reading files ------------------------------------------------------------------------------------------


def _open(path: Path, mode: str, long_side: int = 0) -> Any:
    """Decodes a picture into a mode; JPEGs are decoded straight to about `long_side` pixels if that is given."""
    image_module = require("PIL.Image", "images")
    try:
        with image_module.open(path) as picture:
            if long_side:
                picture.draft(mode, (long_side, long_side))
            return picture.convert(mode)
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"cannot read the picture {path}: {error}; replace or remove the file") from error


def _open_small(paths: Sequence[Path], long_side: int) -> Any:
    """The best file of one picture, as RGB reduced to about `long_side` pixels on its longer side."""
    image_module = require("PIL.Image", "images")

    def rank(path: Path) -> tuple[bool, int, str]:
        try:
            with image_module.open(path) as picture:
                longer = max(picture.size)
        except OSError as error:
            raise InputError(f"cannot read the picture {path}: {error}; replace or remove the file") from error
        return longer < long_side, longer if longer >= long_side else -longer, path.as_posix()

    picture = _open(min(paths, key=rank), "RGB", long_side)
    return picture.reduce(max(1, max(picture.size) // long_side))


def _read_idx(root: Path, name: str, dims: int) -> Array:
    """Reads an idx-ubyte file, plain or gzipped: magic 0, 0, 8, dims; big-endian sizes; bytes."""
    plain, zipped = root / name, root / f"{name}.gz"
    path = plain if plain.is_file() else zipped
    if not path.is_file():
        raise InputError(f"{zipped} is missing: apt-get install dataset-fashion-mnist, or pass its folder as root")
    try:
        content = path.read_bytes() if path == plain else gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"cannot read {path}: {error}; install the file again") from error
    header = 4 + 4 * dims
    shape = tuple(np.frombuffer(content[4:header], ">u4")) if len(content) >= header else ()
    if content[:4] != bytes([0, 0, 8, dims]) or len(content) != header + int(np.prod(shape, dtype=np.int64)):
        raise InputError(f"{path} is not an idx file of {dims}-dimensional bytes; install the file again")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _square_garments(grey: Array, side: int) -> Array:
    """Grey images (count, h, w) as centred RGBA squares (count, 4, side, side)."""
    count, height, width = grey.shape
    edge = max(height, width)
    top, left = (edge - height) // 2, (edge - width) // 2
    squares = np.zeros((count, 4, edge, edge), np.uint8)
    inner = squares[:, :, top : top + height, left : left + width]
    inner[:, :3] = grey[:, None]
    inner[:, 3] = 255 * _fill_holes(grey > 0)
    if side == edge:
        return squares
    resized = np.empty((count, 4, side, side), np.uint8)
    for start in range(0, count, 1024):  # bounded memory
        part = torch.from_numpy(squares[start : start + 1024]).float()
        part = torch.nn.functional.interpolate(part, (side, side), mode="bilinear", antialias=True)
        # The grey is 0 outside, hence premultiplied by alpha already; the result is to be straight.
        part[:, :3] = part[:, :3] / part[:, 3:].clamp_min(1) * 255
        resized[start : start + 1024] = part.round().clamp(0, 255).byte().numpy()
    return resized


def _fill_holes(ink: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Ink and all that it encloses; bool (count, h, w) to the same shape.

    The outside is flooded from a margin: it is swept along rows and columns, both ways, until nothing changes.
    """
    free = np.pad(~ink, ((0, 0), (1, 1), (1, 1)), constant_values=True)
    outside = np.zeros_like(free)
    outside[:, 0] = True
    flooded = -1
    while flooded != (flooded := int(outside.sum())):
        for view, open_ in ((outside, free), (outside.swapaxes(1, 2), free.swapaxes(1, 2))):
            last = view.shape[1] - 1
            for i in range(last):
                view[:, i + 1] |= view[:, i] & open_[:, i + 1]
            for i in range(last, 0, -1):
                view[:, i - 1] |= view[:, i] & open_[:, i - 1]
    return ~outside[:, 1:-1, 1:-1]


# --- checks -------------------------------------------------------------------------------------------------


def _check_choice(what: str, value: object, known: tuple[str, ...]) -> None:
    if value not in known:
        raise InputError(f"{what} is {value!r}; expected one of {', '.join(map(repr, known))}")


def _check_positive(what: str, value: int) -> None:
    if value < 1:
        raise InputError(f"{what} is {value}; expected at least 1")


def _check_folder(root: Path, packages: str) -> None:
    if not root.is_dir():
        raise InputError(f"{root} is not a folder: apt-get install {packages}, or pass the folder as root")
