"""Makes cutouts.tar and backgrounds.tar from published data sets.

    python -m recipes.make_archives masks val2017 instances_val2017.json --out work/coco
    python -m recipes.make_archives white 101_ObjectCategories --out work/caltech
    python -m recipes.make_archives pictures seg_train/seg_train --side 100 --out work/scenes
    tar cf cutouts.tar -C work coco caltech

The archives of the shipped weights hold a choice of such pictures; other pictures give other weights.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from whitebox_crate._files import write_whole
from whitebox_crate.errors import InputError, require

LONGEST = 192  # pixels; of cut-outs
WHITE = 240  # of 255: a background this bright in all channels is removed
SHARE = (0.03, 0.6)  # smallest and largest share of the picture that an object of COCO covers
PER_CLASS = 10


def with_alpha(picture: Any, mask: npt.NDArray[np.bool_]) -> Any:
    """An RGB picture as RGBA, opaque where the mask, bool (height, width), is true; cropped to the mask and reduced.

    Raises:
        InputError: If the mask is empty or of another size.
    """
    image_module = require("PIL.Image", "train")
    if mask.shape != (picture.height, picture.width) or not mask.any():
        raise InputError(f"a mask of {mask.shape}, {int(mask.sum())} pixels, for a picture of {picture.size}")
    cut = picture.convert("RGBA")
    cut.putalpha(image_module.fromarray(np.where(mask, 255, 0).astype(np.uint8)))
    cut = cut.crop(cut.getchannel("A").getbbox())
    cut.thumbnail((LONGEST, LONGEST), image_module.Resampling.BICUBIC)
    return cut


def without_white(picture: Any) -> npt.NDArray[np.bool_]:
    """The pixels outside the white that is connected to the border; bool (height, width)."""
    bright = np.pad(np.asarray(picture.convert("RGB")).min(-1) >= WHITE, 1, constant_values=True)
    outside = np.zeros_like(bright)
    outside[[0, -1]] = outside[:, [0, -1]] = True
    while True:
        grown = outside.copy()
        for axis, step in ((0, 1), (0, -1), (1, 1), (1, -1)):
            grown |= np.roll(grown, step, axis)
        grown &= bright
        grown[[0, -1]] = grown[:, [0, -1]] = True
        if (grown == outside).all():
            return np.asarray(~outside[1:-1, 1:-1])
        outside = grown


def of_masks(images: Path, annotations: Path) -> Iterator[tuple[str, Any]]:
    """The largest whole objects of each class of a COCO file of instances: name and RGBA picture.

    Raises:
        InputError: If a file cannot be read.
    """
    image_module, draw = require("PIL.Image", "train"), require("PIL.ImageDraw", "train")
    try:
        document = json.loads(annotations.read_text())
        files = {entry["id"]: entry for entry in document["images"]}
        classes = {entry["id"]: entry["name"] for entry in document["categories"]}
    except (OSError, ValueError, LookupError) as error:
        raise InputError(f"{annotations} is not a file of COCO instances: {error}") from error
    taken: dict[str, int] = dict.fromkeys(classes.values(), 0)
    for entry in sorted(document["annotations"], key=lambda entry: -entry["area"]):
        of, name = files[entry["image_id"]], classes[entry["category_id"]]
        left, top, width, height = entry["bbox"]
        inside = left > 1 and top > 1 and left + width < of["width"] - 1 and top + height < of["height"] - 1
        share = entry["area"] / (of["width"] * of["height"])
        if entry["iscrowd"] or not inside or not SHARE[0] < share < SHARE[1] or taken[name] == PER_CLASS:
            continue
        outline = image_module.new("1", (of["width"], of["height"]))
        for polygon in entry["segmentation"]:
            draw.Draw(outline).polygon(polygon, fill=1)
        with image_module.open(images / of["file_name"]) as picture:
            yield f"{name}/{taken[name]:02}_{of['id']:012}.webp", with_alpha(picture, np.asarray(outline))
        taken[name] += 1


def of_white(folder: Path) -> Iterator[tuple[str, Any]]:
    """The pictures of a folder of folders that show one object on white: name and RGBA picture."""
    for name, picture in _pictures(folder):
        mask = without_white(picture)
        corners = mask[[0, 0, -1, -1], [0, -1, 0, -1]]
        if not corners.any() and 0.05 < mask.mean() < 0.8:
            yield f"{name}.webp", with_alpha(picture, mask)


def of_pictures(folder: Path, side: int) -> Iterator[tuple[str, Any]]:
    """The pictures of a folder of folders, the shorter side `side` pixels or less: name and RGB picture."""
    for name, picture in _pictures(folder):
        scale = min(1.0, side / min(picture.size))
        yield f"{name}.jpg", picture.resize((round(picture.width * scale), round(picture.height * scale)))


def _pictures(folder: Path) -> Iterator[tuple[str, Any]]:
    image_module = require("PIL.Image", "train")
    for path in sorted(folder.glob("*/*")):
        if path.suffix.lower() in {".jpg", ".jpeg", ".png"}:
            with image_module.open(path) as picture:
                yield path.relative_to(folder).with_suffix("").as_posix(), picture.convert("RGB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    kinds = parser.add_subparsers(dest="kind", required=True)
    masks = kinds.add_parser("masks", help="objects of COCO by their polygons")
    masks.add_argument("folder", type=Path)
    masks.add_argument("annotations", type=Path)
    kinds.add_parser("white", help="objects on white, as in Caltech-101").add_argument("folder", type=Path)
    pictures = kinds.add_parser("pictures", help="backgrounds")
    pictures.add_argument("folder", type=Path)
    pictures.add_argument("--side", type=int, default=200, help="shorter side, pixels (%(default)s)")
    for kind in kinds.choices.values():
        kind.add_argument("--out", type=Path, required=True, help="folder; members are CLASS/FILE")
    options = parser.parse_args()
    if options.kind == "masks":
        found = of_masks(options.folder, options.annotations)
    else:
        found = of_white(options.folder) if options.kind == "white" else of_pictures(options.folder, options.side)
    count = 0
    for name, picture in found:
        path = options.out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, picture.save)
        count += 1
    print(f"{count} pictures in {options.out}")


if __name__ == "__main__":
    main()
