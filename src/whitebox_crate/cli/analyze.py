"""analyze: measures a model on photographs and writes one page of HTML."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ..analysis.reports import report
from ..errors import InputError
from ..images import load_image
from ..models._wrappers import transformer_in
from ._common import make, photographs, place_of_page, report_error, save_page

if TYPE_CHECKING:
    from PIL.Image import Image


def write_page(options: argparse.Namespace) -> int:
    """Measures on every picture that can be read, and reports the others."""
    target = place_of_page(options.out, "report.html")
    paths, failed = photographs(options.images), list[Path]()
    model = transformer_in(make(options))

    def photos() -> Iterator[tuple[str, Image]]:
        for path in paths:
            try:
                photo = load_image(path)
            except InputError as error:
                report_error(path, error)
                failed.append(path)
            else:
                yield path.name, photo

    weights = "" if options.checkpoint is None else f" with {options.checkpoint.name}"
    page = report(model, photos(), title=f"{options.model}{weights}", short_side=options.size)
    save_page(page, target)
    print(f"{target}  ({options.model}, {len(page) / 1e6:.1f} MB)")
    return 1 if failed else 0
