"""What the commands share: the model that they load, and the files that they write."""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .._devices import describe_device
from .._files import is_folder, make_folder, write_whole
from ..backbones import Readable
from ..errors import InputError, OutputError, shown
from ..evaluation.processes import device_of
from ..images import check_is_no_address, image_files
from ..preprocess import best_short_side
from ..ready import named_model

if TYPE_CHECKING:
    from PIL.Image import Image

MANY_TOKENS = 10_000
FEW_PATCHES = 4  # on the shorter side: a map with fewer shows no object


def load(options: argparse.Namespace, any_size: bool = True, tell_of_tokens: bool = True) -> Readable:
    """The model with fixed weights, ready to look at photographs of any size, or of the size that it was made for."""
    return make(options, any_size, tell_of_tokens).requires_grad_(False)


def load_each(options: argparse.Namespace, names: Sequence[str]) -> list[Readable]:
    """Several models, each with its own weights. See `load`."""
    return [load(argparse.Namespace(**{**vars(options), "model": name, "checkpoint": None})) for name in names]


def make(options: argparse.Namespace, any_size: bool = True, tell_of_tokens: bool = True) -> Readable:
    """The model in evaluation mode; the model decides which of its weights are fixed. Warns of an unfit --size."""
    model = named_model(options.model, options.checkpoint, any_size)
    size = getattr(options, "size", None)
    if size and not getattr(options, "quiet", False):
        _tell_of_few_patches(model, size)
    if size and tell_of_tokens:
        _tell_of_tokens(model, size)
    return model.eval().to(device_for(options))


def _tell_of_few_patches(model: Readable, size: int) -> None:
    """Warns that a small --size shows nothing."""
    rows, columns = (max(1, round(size / patch)) for patch in model.patch_size)
    if min(rows, columns) < FEW_PATCHES:
        print(
            f"--size {size} makes {rows} x {columns} patches of a square photograph: too few to show an object; "
            f"without --size, it is {best_short_side(model)}",
            file=sys.stderr,
        )


def _tell_of_tokens(model: Readable, size: int) -> None:
    """Warns of a large --size: work grows with the square of the number of tokens."""
    tokens = math.prod(-(-size // patch) for patch in model.patch_size)
    if tokens > MANY_TOKENS:
        print(
            f"--size {size} makes {tokens:,} patches or more of each photograph, and each patch attends to all: this "
            "takes time and memory",
            file=sys.stderr,
        )


def device_for(options: argparse.Namespace) -> torch.device:
    """The device that --device names, or else the best available. Says which one on stderr."""
    device = device_of(options.device)
    if not getattr(options, "quiet", False):
        print(f"{options.model} runs on {describe_device(device)}", file=sys.stderr)
    return device


def report_error(path: Path, error: Exception) -> None:
    """Reports what is wrong with one of several images. The command goes on with the others."""
    text = str(error) if str(path) in str(error) else f"{path}: {error}"
    print(f"whitebox-crate: error: {shown(text)}", file=sys.stderr)


def samples() -> list[Path]:
    folder = resources.files("whitebox_crate") / "samples"
    return sorted(Path(str(file)) for file in folder.iterdir() if file.name.endswith(".jpg"))


def photographs(named: Sequence[Path]) -> list[Path]:
    """The files that are named, and the photographs in each named folder, sorted. Without names: those of the package.

    Raises:
        InputError: If a folder has no photographs, or a web address is named.
    """
    for path in named:
        check_is_no_address(str(path))
    return [file for path in named for file in (image_files(path) if path.is_dir() else [path])] or samples()


def free_name(folder: Path, stem: str, taken: set[str]) -> Path:
    name, count = stem, 1
    while name in taken:
        count += 1
        name = f"{stem}-{count}"
    taken.add(name)
    return folder / f"{name}.png"


def out_folder(folder: Path) -> None:
    """Makes the folder that --out names."""
    make_folder(folder, "choose another with --out")


def save_picture(picture: Image, target: Path) -> None:
    """Writes a PNG into the folder that --out names, whole or not at all."""
    out_folder(target.parent)
    write_whole(target, partial(picture.save, format="PNG", optimize=True))


def place_of_page(out: str, name: str) -> Path:
    """The file of a page: --out, or a file in --out if that is a folder or ends like one. Called before all work.

    Raises:
        OutputError: If there is a file that is not an HTML page.
    """
    page = Path(out, name) if out.endswith(("/", os.sep)) or is_folder(out) else Path(out)
    start = b""
    with suppress(OSError, ValueError), page.open("rb") as file:  # writing reports what cannot be read
        start = file.read(100).lstrip().lower()
    if start and not start.startswith((b"<!doctype html", b"<html")):
        raise OutputError(f"{page} exists and is not an HTML page; choose another file with --out")
    return page


def save_page(page: str, target: Path) -> None:
    """Writes a page, whole or not at all. Says so if it replaces another."""
    out_folder(target.parent)
    replaces = target.is_file()
    write_whole(target, lambda path: path.write_text(page, encoding="utf-8", errors="backslashreplace"))
    if replaces:
        print(f"{target} existed and was replaced", file=sys.stderr)


def option(text: str) -> tuple[str, Any]:
    """Reads "name=value". The value is a size such as 224x160, or JSON, or else text."""
    name, separator, value = text.partition("=")
    if not separator:
        raise InputError(f"--set takes OPTION=VALUE, for example depth=6, not {text!r}")
    if re.fullmatch(r"\d{1,9}x\d{1,9}", value):
        height, width = value.split("x")
        return name, (int(height), int(width))
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
