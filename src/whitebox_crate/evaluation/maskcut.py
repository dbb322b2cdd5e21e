"""MaskCut over COCO's images: the masks in each image, and their AP (arXiv 2308.16271, table 1)."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .._files import write_whole
from .._plan import State
from .._tables import markdown_table
from ..errors import InputError, require
from ..images import load_image
from ..preprocess import best_short_side, fit_photo
from ..segmentation.attention import upsample
from ..segmentation.cuts import maskcut
from ..segmentation.states import check_finite, patch_features, resolve_layer
from .coco import Result, average_precision, check_images, read_annotations, to_results
from .records import content_of
from .runs import Outcome, Run, broken_images, model_settings, names_digest


def evaluate_maskcut(
    run: Run,
    model: nn.Module,
    annotations: str | os.PathLike[str],
    images: str | os.PathLike[str],
    *,
    name: str,
    size: int | None = None,
    layer: int | None = None,
    n: int = 3,
    tau: float = 0.15,
    state: State = "projections",
) -> Outcome | None:
    """AP of MaskCut's boxes and masks on a data set in COCO's form, whatever the class of objects.

    Writes results.json in COCO's own form, and scores.json and scores.md.

    Args:
        run: Where results go.
        model: A model that `capture` reads, on its device.
        annotations: The file, for example instances_val2017.json.
        images: The folder of images.
        name: Name of the model in the results.
        size: See `maskcut_results`.
        layer: See `maskcut_results`; `default_layer` of the model if None.
        n: See `maskcut_results`.
        tau: See `maskcut_results`.
        state: See `maskcut_results`.

    Returns:
        The outcome; None in processes other than the main one.

    Raises:
        InputError: If files are missing or broken, or an argument is not as above.
        UnknownNameError: If there is no such layer or state.
        WeightsError: If the features are not finite.
        OutputError: If a record or result cannot be written.
        ProcessError: If another process failed.
        MissingExtraError: If Pillow or the evaluator is not installed.
    """
    if not 0 <= tau < 1:
        raise InputError(f"tau must be a cosine in [0, 1), not {tau}")
    require("faster_coco_eval", "eval")  # say that it is missing before the first image
    document, folder = read_annotations(annotations), Path(images)
    run.check_files(partial(check_images, document, folder))
    layer, size = resolve_layer(model, layer), best_short_side(model) if size is None else size
    items = [(image["file_name"], image) for image in document["images"]]
    settings = {
        "measurement": "maskcut",
        "annotations": content_of(annotations),
        "images": names_digest([f"{image['id']} {file_name}" for file_name, image in items]),
        **model_settings(model, name, size),
        "layer": layer,
        "state": state,
        "n": n,
        "tau": tau,
    }

    def find(image: Mapping[str, Any]) -> list[Result]:
        return maskcut_results(model, image, folder, size=size, layer=layer, n=n, tau=tau, state=state)

    def content(image: Mapping[str, Any]) -> str:
        return content_of(folder / image["file_name"])

    records = run.measure(settings, items, find, content)
    if not records.is_main:
        return None
    broken = broken_images(records, len(items))
    results = [result for _, found in records.items() for result in found]
    write_whole(run.folder / "results.json", lambda path: path.write_text(json.dumps(results) + "\n"))
    scores = {
        "detection": average_precision(document, results, "bbox"),
        "segmentation": average_precision(document, results, "segm"),
    }
    what = f"MaskCut on {state} of layer {layer}"
    title = f"{name}, {what}, {len(items)} images at {size} pixels, {len(results)} masks"
    if broken:
        title += f"; in {len(broken)} broken images, named in scores.json, nothing was found"
    rows = [[kind, *(f"{100 * value:.1f}" for value in of.values())] for kind, of in scores.items()]
    table = f"{title}\n\n{markdown_table(['in percent', 'AP50', 'AP75', 'AP'], rows)}\n"
    about = {"settings": records.settings, "images": len(items), "masks": len(results), **scores, "broken": broken}
    return run.write(about, table, "scores")


def maskcut_results(
    model: nn.Module,
    image: Mapping[str, Any],
    folder: str | os.PathLike[str],
    *,
    size: int | None = None,
    layer: int = -2,
    n: int = 3,
    tau: float = 0.15,
    state: State = "projections",
) -> list[Result]:
    """Finds the objects of an image with MaskCut, by the features of a layer (arXiv 2308.16271, appendix B).

    The model sees the whole image (`fit_photo`). Masks go from the patch grid to the image's own size by the nearest
    patch.

    Args:
        model: A model that `capture` reads.
        image: An entry of a document's "images".
        folder: The folder of its file.
        size: Shorter side of the image that the model sees, pixels; `best_short_side` of the model if None.
        layer: The layer, from 0; negative from the end. The paper takes -2 for CRATE and -1 for ViT.
        n: Largest number of masks.
        tau: Patches whose cosine is above this are linked, in [0, 1).
        state: The features: "projections", as in the paper, or "tokens", "compressed", "output"; see `maskcut_of`.

    Returns:
        See `to_results`.

    Raises:
        InputError: If the file cannot be read or does not have the listed size, or an argument is not as above.
        UnknownNameError: If there is no such layer or state.
        WeightsError: If the features are not finite.
        MissingExtraError: If Pillow or the evaluator is not installed.
    """
    path, own_size = Path(folder) / image["file_name"], (image["height"], image["width"])
    # COCO's annotations refer to pixels as stored, whatever the EXIF tag of a photograph says. A data set that was
    # annotated upright lists the upright size.
    photo = load_image(path, upright=False)
    if (photo.height, photo.width) != own_size:
        photo = load_image(path)
    if (photo.height, photo.width) != own_size:
        raise InputError(
            f"{image['file_name']} has {photo.height} x {photo.width} pixels (height x width), but the annotations say "
            f"{own_size[0]} x {own_size[1]}: it is another image or a resized one; use the original"
        )
    pixels = fit_photo(model, photo, size).pixels
    with torch.inference_mode():
        features, grid = patch_features(model, pixels[None], layer, state)
    check_finite(features, f"the features of {image['file_name']} are")
    return to_results(image["id"], upsample(maskcut(features[0], grid, n, tau), own_size))
