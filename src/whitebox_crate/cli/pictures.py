"""classify, segment and attention: what a model sees in photographs."""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .._files import write_whole
from .._indices import resolve_index
from ..errors import InputError, WeightsError
from ..images import load_image
from ..models import ImageTransformer
from ..preprocess import Transform, create_transform, image_to_tensor, resize_to_grid, resolve_data_config
from ..segmentation import attention_masks, cls_attention
from ..segmentation.attention import MaskRule
from ..segmentation.draw import draw_map, draw_mask, draw_panels
from ._common import free_name, layer_of, load, out_folder, samples

if TYPE_CHECKING:
    from PIL.Image import Image

SHOWN_SIDE = 320  # shorter side of a panel, pixels


@torch.inference_mode()
def classify(options: argparse.Namespace) -> int:
    """Names each image as the weights were evaluated: at the model's own size, cropped and normalised as they say."""
    model = load(options, any_size=False)
    if not model.num_classes or not model.global_pool:
        raise InputError(
            f"{options.model} has no head that classifies (num_classes {model.num_classes}, global_pool "
            f"{model.global_pool!r}); choose weights with one: whitebox-crate list --pretrained"
        )
    transform = create_transform(**resolve_data_config(model))
    names = model.pretrained_cfg.label_names
    failed = 0
    for path in options.images or samples():
        try:
            pixels = _transformed(path, transform)
        except InputError as error:
            print(f"whitebox-crate: error: {error}", file=sys.stderr)
            failed += 1
            continue
        probabilities = model(pixels[None])[0].float().softmax(-1)
        if not probabilities.isfinite().all():
            raise WeightsError(f"{options.model} gives numbers that are not finite; its weights are damaged")
        top = probabilities.topk(min(options.top, model.num_classes))
        classes = [
            {"index": index, "label": names[index] if len(names) == model.num_classes else None, "probability": share}
            for index, share in zip(top.indices.tolist(), top.values.tolist(), strict=True)
        ]
        if options.json:
            print(json.dumps({"image": str(path), "model": options.model, "classes": classes}))
        else:
            print(f"{path}  ({options.model})")
            for found in classes:
                print(f"  {found['probability']:6.1%}  {found['label'] or 'class ' + str(found['index'])}")
    return 1 if failed else 0


def _transformed(path: Path, transform: Transform) -> Tensor:
    photo = load_image(path)
    try:
        return transform(photo)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def segment(options: argparse.Namespace) -> int:
    model = load(options)
    facts = model.pretrained_cfg
    rule: MaskRule = options.rule or ("mean" if options.keep is None else "mass")
    if rule == "mean" and options.keep is not None:
        raise InputError("the rule 'mean' has no share to keep: leave --keep out, or choose --rule mass or entries")
    keep = 0.6 if options.keep is None else options.keep
    head = facts.attention_head if options.head is None else options.head
    if head is not None:
        head = resolve_index("head", head, model.num_heads)

    def draw(photo: Image, maps: Tensor, layer: int) -> tuple[Image, str]:
        shown = maps.mean(0) if head is None else maps[head]
        mask = attention_masks(shown, keep, rule)
        what = f"layer {layer}, " + ("mean of the heads" if head is None else f"head {head}")
        panels = [photo, draw_map(shown, (photo.height, photo.width)), draw_mask(photo, mask)]
        return draw_panels(
            panels,
            [
                "image",
                f"[CLS] attention, {what}",
                "mask: above the mean" if rule == "mean" else f"mask: {keep:.0%} of the {rule}",
            ],
        ), what

    return _draw_all(options, model, draw)


def attention(options: argparse.Namespace) -> int:
    model = load(options)

    def draw(photo: Image, maps: Tensor, layer: int) -> tuple[Image, str]:
        panels = [photo] + [draw_map(one, (photo.height, photo.width)) for one in maps]
        captions = [f"image (layer {layer})"] + [f"head {index}" for index in range(len(maps))]
        columns = min(len(panels), 5)
        return draw_panels(panels, captions, columns), f"layer {layer}, {len(maps)} heads"

    return _draw_all(options, model, draw)


def _draw_all(options: argparse.Namespace, model: ImageTransformer, draw: Any) -> int:
    """Draws each image into a PNG of its own; one that fails is reported, and the others are drawn all the same."""
    if model.in_chans != 3:
        raise InputError(f"{options.model} takes {model.in_chans} channels; photographs have 3")
    layer = layer_of(model, options.layer)
    cfg = model.pretrained_cfg
    short_side = cfg.attention_size or min(model.img_size) if options.size is None else options.size
    failed, taken = 0, set[str]()
    for path in options.images or samples():
        try:
            photo = load_image(path)
            seen = resize_to_grid(photo, model.patch_embed.patch_size, short_side)
            pixels = image_to_tensor(seen, mean=cfg.mean, std=cfg.std)
            maps = cls_attention(model, pixels[None], layer=layer)[0]
            sheet, what = draw(shown(photo, seen), maps, layer)
            target = free_name(options.out, path.stem, taken)
            out_folder(options.out)
            write_whole(target, partial(sheet.save, format="PNG"))
        except InputError as error:
            print(f"whitebox-crate: error: {error}", file=sys.stderr)
            failed += 1
        else:
            grid = f"{maps.shape[-2]} x {maps.shape[-1]} patches"
            print(f"{target}  ({options.model}, {what}, {grid})")
    return 1 if failed else 0


def shown(photo: Image, seen: Image) -> Image:
    """The photograph at the size of a panel, in the proportions that the model saw."""
    scale = SHOWN_SIDE / min(seen.size)
    return photo.resize((round(seen.width * scale), round(seen.height * scale)))
