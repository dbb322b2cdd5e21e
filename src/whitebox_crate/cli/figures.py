"""pca, heads and noise: pictures of what features and heads pick, and of the effect of noise."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING

from .._files import write_json
from ..backbones import Readable
from ..errors import InputError
from ..evaluation.figures import Photograph, heads_sheet, noise_sheet, pca_sheet, pca_strip, read_photograph
from ..evaluation.noise import check_noise
from ..preprocess.photographs import check_takes_photos
from ..segmentation.attention import rule_and_keep
from ..segmentation.states import resolve_layer
from ._common import free_name, load, photographs, report_error, save_picture

if TYPE_CHECKING:
    pass


def pca(options: argparse.Namespace) -> int:
    """Draws foreground and parts of one kind of object."""
    model = load(options)
    photos, failed = _read(options, model)
    if options.layer == "all":
        if options.threshold is not None:
            raise InputError(
                "--threshold needs one layer; with --layer all every patch is shown: leave one of them out"
            )
        sheet, name, what = pca_strip(model, photos), "pca-layers", "all layers"
    else:
        layer = resolve_layer(model, options.layer)
        sheet, name, what = pca_sheet(model, photos, layer, options.threshold), f"pca-layer{layer}", f"layer {layer}"
    target = options.out / f"{name}.png"
    save_picture(sheet, target)
    print(f"{target}  ({options.model}, {_count(photos)}, {what})")
    return 1 if failed else 0


def heads(options: argparse.Namespace) -> int:
    """Draws the same heads across images, and writes their ranks."""
    model = load(options)
    photos, failed = _read(options, model)
    if len(photos) < 2:
        raise InputError("heads compares heads across photographs, but you gave one: give two or more")
    layer = resolve_layer(model, options.layer)
    rule, keep = rule_and_keep(options.rule, options.keep)
    sheet, found = heads_sheet(model, photos, layer, masks=options.masks, void=options.void, rule=rule, keep=keep)
    target = options.out / f"heads-layer{layer}.png"
    save_picture(sheet, target)
    write_json(target.with_suffix(".json"), {"model": options.model, **found})
    print(f"{target}  ({options.model}, {_count(photos)}, layer {layer})")
    for head in found["heads"]:
        numbers = "  ".join(f"{name} {value:.2f}" for name, value in head.items() if name != "head")
        print(f"  head {head['head']}  {numbers}")
    return 1 if failed else 0


def noise(options: argparse.Namespace) -> int:
    """Draws a sheet for each image: the maps of all heads as noise grows."""
    for strength, share in product(options.strengths, options.shares):
        check_noise(strength, share)
    model = load(options)
    photos, failed = _read(options, model)
    layer, taken = resolve_layer(model, options.layer), set[str]()
    for photo in photos:
        sheet = noise_sheet(model, photo, layer, options.strengths, options.shares, options.seed)
        target = free_name(options.out, photo.path.stem, taken)
        save_picture(sheet, target)
        print(f"{target}  ({options.model}, layer {layer})")
    return 1 if failed else 0


def _read(options: argparse.Namespace, model: Readable) -> tuple[list[Photograph], int]:
    """The images that can be read, and how many cannot. Reports those that cannot."""
    check_takes_photos(model, options.model)
    photos, failed = [], 0
    for path in photographs(options.images):
        try:
            photos.append(read_photograph(path, model, options.size))
        except InputError as error:
            report_error(path, error)
            failed += 1
    if not photos:
        raise InputError(f"none of the {failed} images can be read; the messages above say why")
    return photos, failed


def _count(photos: Sequence[Photograph]) -> str:
    return f"{len(photos)} image" + ("s" if len(photos) > 1 else "")
