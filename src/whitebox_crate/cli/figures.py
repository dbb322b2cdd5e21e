"""pca, heads and noise: pictures of what features and heads pick over photographs, and of what noise does to it."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .._files import write_whole
from .._random import torch_generator
from ..errors import InputError, require
from ..evaluation import curves
from ..evaluation.folders import LabelledImage
from ..images import load_image
from ..models import ImageTransformer
from ..preprocess import image_to_tensor, resize_to_grid
from ..segmentation import attention_masks, cls_attention, mask_iou, patch_features, upsample
from ..segmentation.draw import PAPER, draw_map, draw_mask, draw_panels
from ..segmentation.heads import rank_heads
from ..segmentation.pca import patch_pca, pca_maps, unit_range
from ._common import free_name, layer_of, load, out_folder, samples

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE = 120  # longer side of a picture on a sheet, pixels
WIDEST = 8  # pictures next to each other


@dataclass(frozen=True)
class Seen:
    """A photograph as it is shown, and as the model takes it."""

    path: Path
    photo: Image
    pixels: Tensor


@torch.inference_mode()
def pca(options: argparse.Namespace) -> int:
    model = load(options)
    seen, failed = _read(options, model)
    if options.layer == "all":
        if options.threshold is not None:
            raise InputError("--threshold is for one layer; the strip of all shows every patch")
        panels, captions = _strip(model, seen)
        columns, name = len(model.blocks) + 1, "pca-layers"
    else:
        layer = layer_of(model, options.layer)
        panels, captions = _parts(model, seen, layer, options)
        columns, name = min(len(seen), WIDEST), f"pca-layer{layer}"
    target = _save(options, name, draw_panels(panels, captions, columns))
    what = "all layers" if options.layer == "all" else f"layer {layer}"
    print(f"{target}  ({options.model}, {_count(seen)}, {what})")
    return 1 if failed else 0


def _parts(
    model: ImageTransformer, seen: Sequence[Seen], layer: int, options: argparse.Namespace
) -> tuple[list[Image], list[str]]:
    """Images, first components, foregrounds and colours under each other."""
    features, grids = _features(model, seen, layer)
    found = patch_pca(features, grids, options.threshold)
    rows = [
        [one.photo for one in seen],
        [_grey(first, one.photo) for first, one in zip(found.first, seen, strict=True)],
        [draw_mask(one.photo, mask) for mask, one in zip(found.foreground, seen, strict=True)],
        [_colour(rgb, one.photo, mask) for rgb, mask, one in zip(found.rgb, found.foreground, seen, strict=True)],
    ]
    titles = ("", "first component", "foreground", "its parts")
    captions = [[title or one.path.stem for one in seen] for title in titles]
    return _in_bands(rows, captions)


def _strip(model: ImageTransformer, seen: Sequence[Seen]) -> tuple[list[Image], list[str]]:
    """For each image two rows, a column for each layer: the first component, and the next three."""
    maps = []
    for layer in range(len(model.blocks)):
        features, grids = _features(model, seen, layer)
        maps.append(unit_range(pca_maps(features, grids)))
    panels, captions = [], []
    for index, one in enumerate(seen):
        panels += [one.photo, *(_grey(of[index][0], one.photo) for of in maps)]
        captions += [one.path.stem, *(f"layer {layer}: 1" for layer in range(len(maps)))]
        panels += [_blank(one.photo), *(_colour(of[index][1:], one.photo) for of in maps)]
        captions += ["", *("2 to 4" for _ in maps)]
    return _framed(panels), captions


@torch.inference_mode()
def heads(options: argparse.Namespace) -> int:
    model = load(options)
    seen, failed = _read(options, model)
    layer = layer_of(model, options.layer)
    maps = [cls_attention(model, one.pixels[None], layer)[0] for one in seen]
    features, _ = _features(model, seen, layer)
    ranking = rank_heads(maps, features)
    order, judged = ranking.order, ranking.score
    measures = {name: getattr(ranking, name) for name in ("score", "consistency", "in_place", "recognised")}
    result: dict[str, Any] = {"model": options.model, "layer": layer, "images": [str(one.path) for one in seen]}
    if options.masks is not None:
        ious = _ious(maps, seen, options)
        judged = measures["iou"] = ious.mean(0)
        order = judged.argsort(descending=True, stable=True).tolist()
        result |= {"rule": options.rule, "keep": None if options.rule == "mean" else options.keep}
        result["iou_by_image"] = ious.tolist()
    panels, captions = [], []
    for one, map_ in zip(seen, maps, strict=True):
        panels += [one.photo, *(draw_map(map_[head], (one.photo.height, one.photo.width)) for head in order)]
        captions += [one.path.stem, *(f"head {head}: {judged[head]:.2f}" for head in order)]
    target = _save(options, f"heads-layer{layer}", draw_panels(_framed(panels), captions, len(order) + 1))
    result["heads"] = [
        {"head": head, **{name: float(value[head]) for name, value in measures.items()}} for head in order
    ]
    write_whole(target.with_suffix(".json"), lambda path: path.write_text(json.dumps(result, indent=1) + "\n"))
    print(f"{target}  ({options.model}, {_count(seen)}, layer {layer})")
    for head in order:
        numbers = "  ".join(f"{name} {float(value[head]):.2f}" for name, value in measures.items())
        print(f"  head {head}  {numbers}")
    return 1 if failed else 0


def _ious(maps: Sequence[Tensor], seen: Sequence[Seen], options: argparse.Namespace) -> Tensor:
    """IoU of each head's mask with what is marked in the image's mask, float (images, heads)."""
    rows = []
    for map_, one in zip(maps, seen, strict=True):
        mask = options.masks / f"{one.path.stem}.png"
        upper = mask.with_suffix(".PNG")
        pair = LabelledImage(one.path, upper if upper.is_file() else mask)
        _, labels = pair.read()
        target = labels != 0
        valid = torch.ones_like(target) if options.void is None else labels != options.void
        if not (target & valid).any():
            raise InputError(f"{pair.mask} marks nothing; leave its image out")
        masks = upsample(attention_masks(map_, options.keep, options.rule), (target.shape[0], target.shape[1]))
        rows.append(mask_iou(masks, target, valid=valid))
    return torch.stack(rows)


@torch.inference_mode()
def noise(options: argparse.Namespace) -> int:
    """A sheet for each image: a row without noise, then one for each share and strength."""
    for strength, share in product(options.strengths, options.shares):
        curves.check_noise(strength, share)
    model = load(options)
    seen, failed = _read(options, model)
    layer, cfg, taken = layer_of(model, options.layer), model.pretrained_cfg, set[str]()
    mean, std = (torch.tensor(values)[:, None, None] for values in (cfg.mean, cfg.std))
    levels = [(0.0, 0.0), *((strength, share) for share in options.shares for strength in options.strengths)]
    for one in seen:
        panels, captions = [], []
        for strength, share in levels:
            generator = torch_generator(options.seed, one.path.stem)
            pixels = curves.add_noise(one.pixels, strength, share, generator, std=cfg.std)
            maps = cls_attention(model, pixels[None], layer)[0]
            panels += [_colour((pixels * std + mean).clamp(0, 1), one.photo)]
            panels += [draw_map(map_, (one.photo.height, one.photo.width)) for map_ in maps]
            captions += [f"{share:.0%}, deviation {strength:g}" if share else one.path.stem]
            captions += [f"head {head}" for head in range(len(maps))]
        out_folder(options.out)
        target = free_name(options.out, one.path.stem, taken)
        sheet = draw_panels(panels, captions, model.num_heads + 1)
        write_whole(target, partial(sheet.save, format="PNG", optimize=True))
        print(f"{target}  ({options.model}, layer {layer})")
    return 1 if failed else 0


def _read(options: argparse.Namespace, model: ImageTransformer) -> tuple[list[Seen], int]:
    """The images, and how many could not be read; each of these is reported."""
    if model.in_chans != 3:
        raise InputError(f"{options.model} takes {model.in_chans} channels; photographs have 3")
    cfg = model.pretrained_cfg
    short_side = cfg.attention_size or min(model.img_size) if options.size is None else options.size
    seen, failed = [], 0
    for path in options.images or samples():
        try:
            photo = load_image(path)
            small = resize_to_grid(photo, model.patch_embed.patch_size, short_side)
        except InputError as error:
            print(f"whitebox-crate: error: {error}", file=sys.stderr)
            failed += 1
            continue
        scale = SIDE / max(small.size)
        shown = photo.resize((round(small.width * scale), round(small.height * scale)))
        seen.append(Seen(path, shown, image_to_tensor(small, mean=cfg.mean, std=cfg.std)))
    if not seen:
        raise InputError(f"none of {failed} images can be read; see above")
    return seen, failed


def _features(model: ImageTransformer, seen: Sequence[Seen], layer: int) -> tuple[list[Tensor], list[tuple[int, int]]]:
    found = [patch_features(model, one.pixels[None], layer) for one in seen]
    return [features[0] for features, _ in found], [grid for _, grid in found]


def _in_bands(rows: Sequence[Sequence[Image]], captions: Sequence[Sequence[str]]) -> tuple[list[Image], list[str]]:
    """Rows that are too wide go on below, all of them together."""
    panels, words, count = [], [], len(rows[0])
    columns = min(count, WIDEST)
    for start in range(0, count, columns):
        for row, titles in zip(rows, captions, strict=True):
            missing = columns - len(row[start : start + columns])
            panels += [*row[start : start + columns], *[_blank(row[0])] * missing]
            words += [*titles[start : start + columns], *[""] * missing]
    return _framed(panels), words


def _framed(panels: Sequence[Image]) -> list[Image]:
    """Pictures of any sizes in the middle of papers of one size."""
    pillow: Any = require("PIL.Image", extra="images")
    width, height = max(panel.width for panel in panels), max(panel.height for panel in panels)
    framed = []
    for panel in panels:
        paper = pillow.new("RGB", (width, height), PAPER)
        paper.paste(panel, ((width - panel.width) // 2, (height - panel.height) // 2))
        framed.append(paper)
    return framed


def _blank(like: Image) -> Image:
    pillow: Any = require("PIL.Image", extra="images")
    paper: Image = pillow.new("RGB", like.size, PAPER)
    return paper


def _colour(rgb: Tensor, photo: Image, inside: Tensor | None = None) -> Image:
    """(3, rows, columns) in [0, 1] at the size of the photograph, each patch whole; outside as paper."""
    pillow: Any = require("PIL.Image", extra="images")
    pixels = rgb * 255
    if inside is not None:
        pixels = torch.where(inside, pixels, torch.tensor(PAPER, dtype=torch.float32)[:, None, None])
    whole = upsample(pixels, (photo.height, photo.width)).permute(1, 2, 0)
    image: Image = pillow.fromarray(whole.round().byte().cpu().numpy())
    return image


def _grey(values: Tensor, photo: Image) -> Image:
    return _colour(values.expand(3, -1, -1), photo)


def _save(options: argparse.Namespace, name: str, sheet: Image) -> Path:
    target: Path = options.out / f"{name}.png"
    out_folder(options.out)
    write_whole(target, partial(sheet.save, format="PNG", optimize=True))
    return target


def _count(seen: Sequence[Seen]) -> str:
    return f"{len(seen)} image" + ("s" if len(seen) > 1 else "")
