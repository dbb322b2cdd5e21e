"""view: one interactive page of photographs and what models see in them."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ..errors import InputError
from ..images import load_image
from ..models._wrappers import transformer_in
from ..viewing import view_photographs
from ._common import load_each, photographs, place_of_page, report_error, save_page

if TYPE_CHECKING:
    from PIL.Image import Image


def write_page(options: argparse.Namespace) -> int:
    """Shows every picture that can be read, and reports the others."""
    target = place_of_page(options.out, "page.html")
    names = options.model or ["crate_nano"]
    models = list(zip(names, map(transformer_in, load_each(options, names)), strict=True))
    photos: list[tuple[str, Image]] = []
    paths = photographs(options.images)
    for path in paths:
        try:
            photos.append((path.name, load_image(path)))
        except InputError as error:
            report_error(path, error)
    if not photos:
        raise InputError(f"none of the {len(paths)} images can be read; the messages above say why")
    page = view_photographs(photos, models, options.size, options.megabytes)
    save_page(page.html, target)
    print(f"{target}  ({', '.join(names)}, {len(page.html) / 1e6:.1f} MB)")
    return 1 if len(photos) < len(paths) else 0
