"""Writes a small data set in the layouts of VOC 2012 and COCO: photographed objects pasted over photographs.

The masks are exact, because they are the alpha of the pasted objects. The evaluation commands run on it in seconds.
Anyone can make it from three Debian packages; the same version of Pillow makes the same bytes:

    apt-get install tuxpaint-stamps-default plasma-workspace-wallpapers gnome-backgrounds
    python -m recipes.toy --out toy --images 24 --size 160 --seed 0
    whitebox-crate evaluate voc --root toy --out toy_voc
    whitebox-crate evaluate coco --root toy/COCO --out toy_coco
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from recipes.backgrounds import wallpapers
from recipes.objects import Objects, photographs
from whitebox_crate.errors import InputError, OutputError, WhiteboxCrateError

VOID = 255
SCALES = (0.5, 0.95)  # longer side of an object / shorter side of its place
LONG = 1.5  # longer side of a picture that is not square / shorter side
MOST_CLASSES = 20  # of VOC
TRIES = 100  # at a picture whose objects are all there

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Picture:
    """A composite: the image, and the class (from 1) and the mask, bool (height, width), of each object."""

    image: Image.Image
    classes: tuple[int, ...]
    masks: tuple[Mask, ...]


def compose(objects: Objects, backgrounds: npt.NDArray[np.uint8], classes: list[str], seed: int) -> Iterator[Picture]:
    """A picture for each background, (count, 3, side, side): square, wide or tall, of one object or of two apart.

    A thin object scaled to a few pixels may cover no pixel by more than half; such a picture is drawn again.
    """
    random = np.random.default_rng(seed)
    for background in backgrounds:
        tries = (draw(objects, background, classes, random) for _ in range(TRIES))
        found = next((picture for picture in tries if all(mask.any() for mask in picture.masks)), None)
        if found is None:
            raise InputError(f"in {TRIES} tries, objects had no pixel left at this size; choose a larger --size")
        yield found


def draw(
    objects: Objects, background: npt.NDArray[np.uint8], classes: list[str], random: np.random.Generator
) -> Picture:
    side = background.shape[-1]
    short = round(side / LONG)
    width, height = [(short, short), (side, short), (short, side)][random.integers(3)]
    image = Image.fromarray(background.transpose(1, 2, 0)).crop((0, 0, width, height))
    places = [(0, 0, width, height)]
    if random.random() < 0.5:  # the longer side is cut in two
        middle_x, middle_y = (width // 2, height) if width >= height else (width, height // 2)
        places = [(0, 0, middle_x, middle_y), (width - middle_x, height - middle_y, width, height)]
    chosen = random.choice(len(objects.labels), len(places), replace=False)
    cuts = [cut_out(objects, int(index)) for index in chosen]
    masks = [paste(image, cut, place, random) for cut, place in zip(cuts, places, strict=True)]
    names = [objects.class_names[int(objects.labels[index])] for index in chosen]
    return Picture(image, tuple(classes.index(group(name)) + 1 for name in names), tuple(masks))


def paste(image: Image.Image, cut: Image.Image, place: Sequence[int], random: np.random.Generator) -> Mask:
    """Pastes a cut-out anywhere in its place, (left, top, right, bottom); its mask is where alpha exceeds a half."""
    left, top, right, bottom = place
    scale = random.uniform(*SCALES) * min(right - left, bottom - top) / max(cut.size)
    width, height = (max(1, round(length * scale)) for length in cut.size)
    cut = cut.resize((width, height), Image.Resampling.BICUBIC)
    if random.random() < 0.5:
        cut = cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    x = int(random.integers(left, right - width + 1))
    y = int(random.integers(top, bottom - height + 1))
    image.paste(cut, (x, y), cut)
    mask = np.zeros((image.height, image.width), bool)
    mask[y : y + height, x : x + width] = np.asarray(cut)[..., 3] > 127
    return mask


def cut_out(objects: Objects, index: int) -> Image.Image:
    square = Image.fromarray(objects.images[index].numpy().transpose(1, 2, 0))
    return square.crop(square.getchannel("A").getbbox())


def group(name: str) -> str:
    """The class of an object: the first folder of its name, "animals" of "animals/birds/duck"."""
    return name.split("/")[0] if "/" in name else "objects"


# --- VOC ----------------------------------------------------------------------------------------------------


def write_voc(folder: Path, pictures: Sequence[Picture], classes: Sequence[str]) -> None:
    """JPEGImages, SegmentationClass, ImageSets/Segmentation/val.txt, and the names of the classes."""
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (folder / name).mkdir(parents=True)
    names = [f"2012_{number:06d}" for number in range(1, len(pictures) + 1)]
    for name, picture in zip(names, pictures, strict=True):
        save_jpeg(picture.image, folder / "JPEGImages" / f"{name}.jpg")
        labels = Image.fromarray(class_map(picture))
        labels.putpalette(palette())
        labels.save(folder / "SegmentationClass" / f"{name}.png")
    (folder / "ImageSets/Segmentation/val.txt").write_text("".join(f"{name}\n" for name in names))
    lines = (f"{number} {name}\n" for number, name in enumerate(classes, start=1))
    (folder / "classes.txt").write_text("".join(lines))


def class_map(picture: Picture) -> npt.NDArray[np.uint8]:
    """0 for the background, the class where an object is, 255 (unknown) in a border of one pixel around it."""
    labels = np.zeros(picture.masks[0].shape, np.uint8)
    for number, mask in zip(picture.classes, picture.masks, strict=True):
        near = np.pad(mask, 1)
        near[1:-1] |= near[:-2] | near[2:]  # a pixel up and down ...
        near[:, 1:-1] |= near[:, :-2] | near[:, 2:]  # ... and left and right of that
        labels[near[1:-1, 1:-1]] = VOID
        labels[mask] = number
    return labels


def palette() -> list[int]:
    """VOC's colours: the bits of the index, three at a time, are the bits of red, green and blue from the highest."""
    return [
        sum((index >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(8))
        for index in range(256)
        for channel in range(3)
    ]


# --- COCO ---------------------------------------------------------------------------------------------------


def write_coco(folder: Path, pictures: Sequence[Picture], classes: Sequence[str]) -> None:
    """val2017, and annotations/instances_val2017.json with run-length masks."""
    (folder / "val2017").mkdir(parents=True)
    (folder / "annotations").mkdir()
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, picture in enumerate(pictures, start=1):
        name = f"{image_id:012d}.jpg"
        save_jpeg(picture.image, folder / "val2017" / name)
        images.append({"id": image_id, "file_name": name, "width": picture.image.width, "height": picture.image.height})
        for number, mask in zip(picture.classes, picture.masks, strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": number,
                    "segmentation": {"size": list(mask.shape), "counts": runs(mask)},
                    "area": int(mask.sum()),
                    "bbox": box(mask),
                    "iscrowd": 0,
                }
            )
    document = {
        "info": {"description": "Composites of photographed objects over photographs, with exact masks"},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for number, name in enumerate(classes, start=1)],
    }
    (folder / "annotations/instances_val2017.json").write_text(json.dumps(document))


def runs(mask: Mask) -> list[int]:
    """Lengths of the runs of equal pixels, column by column, of unset pixels first: COCO's RLE, uncompressed."""
    flat = mask.T.ravel()
    edges = np.flatnonzero(np.diff(flat, prepend=False)).tolist()  # where a run of another kind begins
    starts = [0, *edges, len(flat)]
    return [stop - start for start, stop in pairwise(starts)]


def box(mask: Mask) -> list[int]:
    """[x, y, width, height] of the tight box, pixels."""
    columns, rows = (np.flatnonzero(mask.any(axis)) for axis in (0, 1))
    return [int(v) for v in (columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1)]


# --- the command --------------------------------------------------------------------------------------------


def save_jpeg(image: Image.Image, path: Path) -> None:
    image.save(path, format="JPEG", quality=95)


def make(out: Path, pictures: Sequence[Picture], classes: Sequence[str]) -> None:
    """Writes both layouts beside `out`, then renames the whole, so that it is complete or absent."""
    temporary = None
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise InputError(f"{out} exists already; remove it, or choose another place with --out")
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}-"))
        write_voc(temporary / "VOC2012", pictures, classes)
        write_coco(temporary / "COCO", pictures, classes)
        temporary.chmod(0o755)
        temporary.replace(out)
    except OSError as error:
        raise OutputError(f"cannot write {out}: {error}; choose another place with --out") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder, new or empty")
    parser.add_argument("--images", type=int, default=24, help="how many (%(default)s)")
    parser.add_argument("--size", type=int, default=160, help="shorter side of an image, pixels (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--split", choices=("held_out", "train"), default="held_out", help="of the objects")
    parser.add_argument("--stamps", type=Path, help="folder of RGBA PNG files, in place of the Debian package's")
    parser.add_argument("--wallpapers", type=Path, help="folder of pictures, in place of the Debian packages'")
    options = parser.parse_args(arguments)
    if options.images < 1 or options.size < 16:
        raise InputError(f"expected at least 1 image of at least 16 px, not {options.images} of {options.size}")

    stamps = {"root": options.stamps} if options.stamps else {}
    roots = {"roots": [options.wallpapers]} if options.wallpapers else {}
    objects = photographs(options.split, side=options.size, **stamps)
    side = round(LONG * options.size)
    backgrounds = wallpapers(options.split, count=options.images, side=side, seed=options.seed, **roots).numpy()
    classes = sorted({group(name) for name in objects.class_names})
    if len(classes) > MOST_CLASSES:
        raise InputError(f"{len(classes)} folders of stamps; VOC has {MOST_CLASSES} classes, one for each folder")
    make(options.out, list(compose(objects, backgrounds, classes, options.seed)), classes)
    print(f"{options.out}: {options.images} images, classes {', '.join(classes)}")


if __name__ == "__main__":
    try:
        main()
    except WhiteboxCrateError as error:
        sys.exit(f"{Path(__file__).name}: error: {error}")
