"""Helpers for sources of objects and backgrounds: read pictures, hold names out, check arguments and folders."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from whitebox_crate.errors import InputError, require

Array = npt.NDArray[np.uint8]


def held_out_of(names: Iterable[str], share: float, family: Callable[[str], str]) -> set[str]:
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


def open_picture(path: Path, mode: str | None = None, long_side: int = 0) -> Any:
    """Decodes a picture into a mode, JPEGs straight to about `long_side` pixels; no mode: only the header."""
    image_module = require("PIL.Image", "train")
    try:
        with image_module.open(path) as picture:
            if long_side:
                picture.draft(mode, (long_side, long_side))
            return picture.convert(mode) if mode else picture
    except (OSError, SyntaxError, ValueError, image_module.DecompressionBombError) as error:
        raise InputError(f"cannot read the picture {path}: {error}; replace or remove the file") from error


def check_choice(what: str, value: object, known: tuple[str, ...]) -> None:
    if value not in known:
        raise InputError(f"{what} is {value!r}; expected one of {', '.join(map(repr, known))}")


def check_folder(root: Path, packages: str) -> None:
    if not root.is_dir():
        raise InputError(f"{root} is not a folder: apt-get install {packages}, or pass the folder as root")
