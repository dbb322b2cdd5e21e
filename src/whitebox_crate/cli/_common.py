"""What the commands share when they run: the model that they name, and where their files go."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from .._devices import describe_device
from .._files import make_folder
from ..errors import InputError, OutputError
from ..evaluation.processes import device_of
from ..factory import create_model
from ..images import image_files
from ..models import ImageTransformer


def load(options: argparse.Namespace, any_size: bool = True) -> ImageTransformer:
    """The model, ready to look at photographs: of any size, or as it was made. None of it is trained any more."""
    return make(options, any_size).requires_grad_(False)


def make(options: argparse.Namespace, any_size: bool = True) -> ImageTransformer:
    """The model in evaluation mode, with what of it is trained and what is fixed."""
    own_weights = options.checkpoint is None
    model = create_model(
        options.model, pretrained=own_weights, checkpoint_path=options.checkpoint, dynamic_img_size=any_size or None
    )
    if not isinstance(model, ImageTransformer):
        raise InputError(f"{options.model} makes a {type(model).__name__}, whose layers are not known")
    return model.eval().to(device_for(options))


def device_for(options: argparse.Namespace) -> torch.device:
    """The device that --device names, or the best there is; which one that is, is said."""
    device = device_of(options.device)
    if not getattr(options, "quiet", False):
        print(f"{options.model} runs on {describe_device(device)}", file=sys.stderr)
    return device


def report_error(error: Exception) -> None:
    """Says what is wrong with one of several images; the others go on."""
    print(f"whitebox-crate: error: {error}", file=sys.stderr)


def samples() -> list[Path]:
    folder = resources.files("whitebox_crate") / "samples"
    return sorted(Path(str(file)) for file in folder.iterdir() if file.name.endswith(".jpg"))


def photographs(named: Sequence[Path]) -> list[Path]:
    """Each file that is named, and the photographs of each folder, sorted; those of the package if none is named.

    Raises:
        InputError: If a folder has none.
    """
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
    make_folder(folder, "give another with --out")


def refuse_folder(page: Path) -> None:
    """Refuses a folder where --out names a page, before anything is measured.

    Raises:
        OutputError: If it is one.
    """
    if page.is_dir():
        raise OutputError(f"{page} is a folder; give the name of a file, for example {page / 'page.html'}")


def option(text: str) -> tuple[str, Any]:
    """Reads "name=value": a size as 224x160, else JSON where the value is JSON, else text."""
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
