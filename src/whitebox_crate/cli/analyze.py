"""analyze: a model measured on photographs, as one page of HTML."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from .._files import write_whole
from ..analysis.reports import report
from ..errors import InputError
from ..images import IMAGE_SUFFIXES, load_image
from ._common import make, out_folder, refuse_folder, report_error, samples

if TYPE_CHECKING:
    from PIL.Image import Image


def write_page(options: argparse.Namespace) -> int:
    """Measures on every picture that can be read; those that cannot are reported."""
    refuse_folder(options.out)
    model = make(options)
    failed: list[Path] = []

    def photos() -> Iterator[tuple[str, Image]]:
        for path in _files(options.images or samples()):
            try:
                photo = load_image(path)
            except InputError as error:
                report_error(error)
                failed.append(path)
            else:
                yield path.name, photo

    weights = "" if options.checkpoint is None else f" with {options.checkpoint.name}"
    page = report(model, photos(), title=f"{options.model}{weights}", short_side=options.size)
    out_folder(options.out.parent)
    write_whole(options.out, lambda path: path.write_text(page, encoding="utf-8"))
    print(f"{options.out}  ({options.model}, {len(page) / 2**20:.1f} MB)")
    return 1 if failed else 0


def _files(named: list[Path]) -> Iterator[Path]:
    """Each file that is named, and those of a folder that look like pictures, sorted."""
    for path in named:
        if path.is_dir():
            yield from sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
        else:
            yield path
