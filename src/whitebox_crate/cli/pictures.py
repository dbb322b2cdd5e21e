"""classify and attention: what a model sees in photographs."""

from __future__ import annotations

import argparse
import json

import torch

from ..errors import InputError, WeightsError, printable
from ..evaluation.figures import maps_sheet, read_photograph
from ..images import load_image
from ..preprocess import check_takes_photos, create_transform, resolve_data_config
from ..segmentation import cls_attention
from ..segmentation.states import resolve_layer
from ._common import free_name, load, photographs, report_error, save_picture


@torch.inference_mode()
def classify(options: argparse.Namespace) -> int:
    """Names each image as the weights were evaluated: at the model's own size, cropped and normalised as they say."""
    paths, model = photographs(options.images), load(options, any_size=False)
    if not model.num_classes or not model.global_pool:
        raise InputError(
            f"{options.model} has no head that classifies (num_classes {model.num_classes}, global_pool "
            f"{model.global_pool!r}); choose weights with one: whitebox-crate list --pretrained"
        )
    transform = create_transform(**resolve_data_config(model))
    names = model.pretrained_cfg.label_names
    failed = 0
    for path in paths:
        try:
            pixels = transform(load_image(path))
        except InputError as error:
            report_error(path, error)
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
                print(f"  {found['probability']:6.1%}  {printable(found['label'] or 'class ' + str(found['index']))}")
    return 1 if failed else 0


def attention(options: argparse.Namespace) -> int:
    """Draws each image and the maps of all heads; one that fails is reported, and the others are drawn all the same."""
    paths, model = photographs(options.images), load(options)
    check_takes_photos(model, options.model)
    layer, failed, taken = resolve_layer(model, options.layer), 0, set[str]()
    for path in paths:
        try:
            photo = read_photograph(path, model, options.size, alone=True)
            maps = cls_attention(model, photo.batch, layer)[0]
            sheet = maps_sheet(photo, maps, layer)
            target = free_name(options.out, path.stem, taken)
            save_picture(sheet, target)
        except InputError as error:
            report_error(path, error)
            failed += 1
        else:
            grid = f"{maps.shape[-2]} x {maps.shape[-1]} patches"
            print(f"{target}  ({options.model}, layer {layer}, {model.num_heads} heads, {grid})")
    return 1 if failed else 0
