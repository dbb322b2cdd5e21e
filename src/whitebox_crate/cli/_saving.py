"""Saving: writes what was found in photographs: masks, pictures, maps, boxes, and COCO's JSON of all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .._files import write_whole
from .._version import __version__
from ..errors import require
from ..segmentation.encoding import run_lengths
from ..segmenting import Segmentation
from ._common import out_folder
from ._journal import Entry

FAST = 1  # zlib level for pictures: a third of the time of the default level, files an eighth larger

# For each kind of file: its folder inside --out, and its suffix.
PLACES = {
    "panel": ("", ".png"),
    "mask": ("masks", ".png"),
    "overlay": ("overlays", ".png"),
    "map": ("maps", ".npy"),
    "boxes": ("boxes", ".json"),
}


def files_of(out: Path, item: str, kinds: Sequence[str]) -> dict[str, Path]:
    """The files of a photograph, by kind."""
    return {kind: out / PLACES[kind][0] / (item + PLACES[kind][1]) for kind in kinds if kind in PLACES}


def save(found: Segmentation, files: dict[str, Path], numbered: bool) -> None:
    """Writes the files, each whole or not at all.

    Args:
        found: What was found.
        files: See `files_of`.
        numbered: Whether a mask numbers its objects 1, 2, 3, ...; else the inside is 255.

    Raises:
        OutputError: If a file cannot be written.
    """
    write = {
        "panel": lambda path: found.panel().save(path, format="PNG", compress_level=FAST),
        "mask": lambda path: _mask(found, numbered).save(path, format="PNG"),
        "overlay": lambda path: found.overlay().save(path, format="PNG", compress_level=FAST),
        "map": lambda path: np.save(path, found.maps.numpy()),
        "boxes": lambda path: path.write_text(json.dumps(_boxes(found)) + "\n"),
    }
    for kind, file in files.items():
        out_folder(file.parent)
        write_whole(file, write[kind])


def entry_of(found: Segmentation, **about: Any) -> Entry:
    """The journal's entry of a photograph: its size, its grid, and its objects with masks as run lengths."""
    objects = [
        {**of, "area": int(mask.sum()), "segmentation": run_lengths(mask)}
        for of, mask in zip(_boxes(found), found.masks, strict=True)
    ]
    size = {"width": found.photo.width, "height": found.photo.height, "grid": list(found.map.shape)}
    return {**about, **size, "objects": objects}


def save_coco(path: Path, entries: Iterable[Entry], photographs: Sequence[Path], about: str) -> None:
    """Writes entries of photographs as COCO's JSON: images, annotations and the one category, "object".

    File names are relative to the folder that has all photographs. Each annotation also has a score, so COCO's
    evaluator takes the list of annotations as results.

    Args:
        path: The file to write.
        entries: See `entry_of`; "image" is the photograph's file. One entry at a time is in memory.
        photographs: All files.
        about: What made the masks.

    Raises:
        OutputError: If the file cannot be written.
    """
    folder = os.path.commonpath([os.path.abspath(photo.parent) for photo in photographs])

    def write(temporary: Path) -> None:
        images, number = [], 0
        with temporary.open("w") as file:
            file.write('{"annotations": [')
            for image_id, entry in enumerate(entries, start=1):
                name = Path(os.path.relpath(entry["image"], folder)).as_posix()
                images.append({"id": image_id, "file_name": name, "width": entry["width"], "height": entry["height"]})
                for of in entry["objects"]:
                    file.write(",\n" if number else "\n")
                    number += 1
                    file.write(json.dumps(_annotation(of, number, image_id)))
            rest = {
                "images": images,
                "categories": [{"id": 1, "name": "object", "supercategory": "object"}],
                "info": {"description": about, "version": __version__},
                "licenses": [],
            }
            file.write("],\n" + json.dumps(rest)[1:] + "\n")

    write_whole(path, write)


def _annotation(of: Entry, number: int, image_id: int) -> Entry:
    rest = {"bbox": of["box"], "area": of["area"], "segmentation": of["segmentation"], "score": of["score"]}
    return {"id": number, "image_id": image_id, "category_id": 1, "iscrowd": 0, **rest}


def _boxes(found: Segmentation) -> list[Entry]:
    boxes, scores = found.boxes.tolist(), found.scores.tolist()
    return [{"box": box, "score": score} for box, score in zip(boxes, scores, strict=True)]


def _mask(found: Segmentation, numbered: bool) -> Any:
    """A Pillow image of mode L."""
    pillow: Any = require("PIL.Image", extra="images")
    values = found.mask * torch.tensor(255, dtype=torch.uint8)
    if numbered:
        for number, mask in enumerate(found.masks, start=1):
            values[mask] = number
    return pillow.fromarray(values.numpy())
