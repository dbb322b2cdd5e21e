"""Draws the masks of two networks for 24 random photographs. Nobody chose these, so they include failures.

    python -m recipes.by_lot --data data/ecssd --out runs/by_lot

DATA holds images/ and masks/. The photographs come from the half on which nothing was chosen
(`measure_photographs.halves`).
OUT.png shows each photograph, the mask of `segment` by each network and the true mask. OUT.json has the IoU of each.
"""

from __future__ import annotations

import argparse
import random
from functools import partial
from pathlib import Path
from typing import Any

from recipes.measure_photographs import centred_box, halves
from recipes.provenance import provenance
from whitebox_crate import segment
from whitebox_crate._files import make_folder, write_json, write_whole
from whitebox_crate._tables import markdown_table
from whitebox_crate.errors import InputError
from whitebox_crate.evaluation.folders import LabelledImage, read_folder
from whitebox_crate.ready import ready_model
from whitebox_crate.segmentation import mask_iou
from whitebox_crate.segmentation.draw import draw_mask, draw_panels

MODELS = {"CRATE": "crate_nano.scene_composites", "ViT": "vit_nano"}
PANEL = (180, 135)  # (width, height), pixels


def drawn(items: list[tuple[str, LabelledImage]], count: int, seed: int) -> list[tuple[str, LabelledImage]]:
    """Random photographs from the half to report on.

    Raises:
        InputError: If that half has fewer.
    """
    half = sorted(items)[halves(len(items))["report"]]
    if len(half) < count:
        raise InputError(f"cannot draw {count} of {len(half)} photographs; give a smaller --count")
    return random.Random(seed).sample(half, count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with images/ and masks/")
    parser.add_argument("--out", type=Path, required=True, help="name of the files, without .png and .json")
    parser.add_argument("--count", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    make_folder(options.out.parent, "choose another with --out")
    networks = {kind: ready_model(name) for kind, name in MODELS.items()}
    panels, captions = [], []
    found: list[dict[str, Any]] = []
    for name, pair in drawn(list(read_folder(options.data).items), options.count, options.seed):
        image, labels = pair.read()
        shown, target = image.resize(PANEL), labels > 0
        masks = {kind: segment(image, network).mask for kind, network in networks.items()}
        ious = {kind: round(float(mask_iou(mask, target)), 3) for kind, mask in masks.items()}
        box = round(float(mask_iou(centred_box((image.height, image.width)), target)), 3)
        found.append({"photograph": name, **ious, "box": box})
        panels += [shown, *(draw_mask(shown, mask) for mask in (*masks.values(), target))]
        captions += [name, *(f"{kind}, IoU {iou:.2f}" for kind, iou in ious.items()), "true"]
    sheet = draw_panels(panels, captions, columns=8)  # two photographs in a row
    picture, results = (Path(f"{options.out}.{kind}") for kind in ("png", "json"))
    facts = {**provenance("recipes.by_lot"), "seed": options.seed, "models": MODELS, "photographs": found}
    write_whole(picture, partial(sheet.save, format="PNG"))
    write_json(results, facts)
    print(markdown_table(["photograph", *MODELS, "box"], [list(row.values()) for row in found]))
    print(picture, results, sep="\n")


if __name__ == "__main__":
    main()
