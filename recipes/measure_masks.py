"""Measures ways to masks (`recipes.masks`) on photographs: variants are chosen on one half and reported on the other.

    python -m recipes.measure_masks --data ECSSD --model crate_nano --out results.json
    python -m recipes.measure_masks --data ECSSD --model local-dir:runs/vit_nano/model --only 'multi*' --out vit.json

For DATA and the halves see `recipes.measure_photographs`. A mask on the patch grid is compared as whole patches.
"""

from __future__ import annotations

import fnmatch
import re
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recipes.masks import Photo, Way, ways
from recipes.measure_photographs import halves, interval, parser_of, photographs
from recipes.provenance import provenance
from whitebox_crate import ImageTransformer, create_model
from whitebox_crate._files import write_json
from whitebox_crate._tables import markdown_table
from whitebox_crate.errors import InputError
from whitebox_crate.evaluation.folders import LabelledImage
from whitebox_crate.preprocess import fit_photo
from whitebox_crate.segmentation import mask_iou, upsample


@torch.inference_mode()
def scores(
    model: ImageTransformer, pairs: Sequence[LabelledImage], families: dict[str, dict[str, Way]], short_side: int
) -> dict[str, dict[str, Tensor]]:
    """IoU, (photographs,), by family and variant.

    Raises:
        InputError: If there is no photograph, or a file cannot be read.
    """
    if not pairs:
        raise InputError("no photograph to measure on; expected one or more")
    found: dict[str, dict[str, list[float]]] = {name: {one: [] for one in of} for name, of in families.items()}
    for number, pair in enumerate(pairs, start=1):
        image, labels = pair.read()
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        photo = Photo(model, fit_photo(model, image, short_side).pixels, pixels)
        target, size = labels > 0, (labels.shape[0], labels.shape[1])
        for family, variants in families.items():
            for name, way in variants.items():
                found[family][name].append(float(mask_iou(upsample(way(photo), size), target)))
        if number % 10 == 0:
            print(f"{number} of {len(pairs)}", file=sys.stderr, flush=True)
    return {family: {name: torch.tensor(of) for name, of in variants.items()} for family, variants in found.items()}


def summary(found: dict[str, dict[str, Tensor]]) -> dict[str, Any]:
    """The best variant of each family on the first half: its mean and half of its 95% interval on both halves."""
    summaries = {}
    for family, variants in found.items():
        parts = halves(len(next(iter(variants.values()))))
        best = max(variants, key=lambda name: float(variants[name][parts["choose"]].mean()))
        summaries[family] = {
            "variant": best,
            **{half: interval(variants[best][part]) for half, part in parts.items()},
            "variants_on_first_half": {
                name: round(float(of[parts["choose"]].mean()), 4) for name, of in variants.items()
            },
        }
    return summaries


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--only", nargs="+", default=["*"], help="families by name, wildcards are fine")
    parser.add_argument("--leave-out", nargs="+", default=[], help="families by name, wildcards are fine")
    options = parser.parse_args()
    model = create_model(options.model, pretrained=True, dynamic_img_size=True).eval()
    pairs = photographs(options)
    families = {
        name: variants
        for name, variants in ways(model).items()
        if _fits(name, options.only) and not _fits(name, options.leave_out)
    }
    results = {
        "model": options.model,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "size": options.size,
        "photographs": len(pairs),
        "seed": "none: nothing is drawn",
        **provenance("recipes.measure_masks"),
        "families": summary(scores(model, pairs, families, options.size)),
    }
    write_json(options.out, results)
    print(table(results))


def table(results: dict[str, Any]) -> str:
    """The results in Markdown, the best on the second half first."""
    families = sorted(results["families"].items(), key=lambda item: -item[1]["report"][0])
    rows = [
        [family, _said(of["variant"]), *(_interval(*of[half]) for half in ("choose", "report"))]
        for family, of in families
    ]
    return markdown_table(["way", "variant, chosen on the first half", "first half", "second half"], rows)


def _interval(mean: float, half: float) -> str:
    return f"{mean:.3f} ± {half:.3f}".replace(" ", "\N{NO-BREAK SPACE}")  # a narrow column does not tear it apart


def _said(variant: str) -> str:
    """A variant for people: no quotes, braces and long fractions of Python."""
    return re.sub(r"\d\.\d{3,}", lambda long: f"{float(long[0]):.2f}", re.sub(r"[{}']", "", variant)) or "-"


def _fits(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


if __name__ == "__main__":
    main()
