"""classify and attention: what a model sees in photographs."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

import torch
from torch import Tensor

from .._plan import layers_with
from ..backbones import Readable
from ..errors import InputError, WeightsError, printable
from ..evaluation.figures import maps_sheet, read_photograph
from ..images import load_image
from ..models._classes import class_index, class_names, classifies
from ..preprocess import create_transform, resolve_data_config
from ..preprocess.photographs import check_takes_photos
from ..segmentation import class_maps, cls_attention, membership_maps
from ..segmentation.gradients import ClassMap
from ..segmentation.states import resolve_layer
from ._common import free_name, load, photographs, report_error, save_picture


@torch.inference_mode()
def classify(options: argparse.Namespace) -> int:
    """Names each image. Size, crop and normalisation are those that the weights were evaluated with."""
    paths, model = photographs(options.images), load(options, any_size=False)
    _check_classifies(model, options)
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
            raise WeightsError(f"{options.model} gives logits that are not finite: its weights are damaged")
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
    """Draws each image and its maps, of all heads or of the classes that --label names.

    Reports an image that fails, and goes on with the others.
    """
    paths, model = photographs(options.images), load(options)
    check_takes_photos(model, options.model)
    if options.label:
        _check_classifies(model, options)
        if options.state != "attention":
            raise InputError(f"--label needs --state attention: leave out --label or --state {options.state}")
    classes = [class_index(model, label) for label in options.label]
    names = [class_names(model)[index] for index in classes]
    layer, failed, taken = _layer_of(model, options.state, options.layer), 0, set[str]()
    of_layer = f"layer {layer}" if options.layer is not None or not classes else "all layers"
    says = f"classes {', '.join(map(printable, names))}" if classes else f"{model.num_heads} heads"
    for path in paths:
        try:
            photo = read_photograph(path, model, options.size, alone=True)
            if classes:
                maps = _maps_of(model, photo.batch, classes, options.layer)
            else:
                of_heads = membership_maps if options.state == "membership" else cls_attention
                maps = of_heads(model, photo.batch, layer)[0]
            sheet = maps_sheet(photo, maps, f"image ({of_layer})", names)
            target = free_name(options.out, path.stem, taken)
            save_picture(sheet, target)
        except InputError as error:
            report_error(path, error)
            failed += 1
        else:
            grid = f"{maps.shape[-2]} x {maps.shape[-1]} patches"
            print(f"{target}  ({options.model}, {of_layer}, {says}, {grid})")
    return 1 if failed else 0


def _layer_of(model: Readable, state: str, layer: int | None) -> int:
    """The layer to draw: the given one; else the best for [CLS] attention, or the last that has membership."""
    if state == "membership":
        return layers_with(model, state, layers=None if layer is None else [layer])[-1]
    return resolve_layer(model, layer)


def _maps_of(model: Readable, image: Tensor, classes: Sequence[int], layer: int | None) -> Tensor:
    """The maps of classes in one image, (classes, rows, columns), from all layers or from the given one."""
    method: ClassMap = "relevance" if layer is None else "gradient_attention"
    return torch.cat([class_maps(model, image, index, method, layer) for index in classes])


def _check_classifies(model: Readable, options: argparse.Namespace) -> None:
    if not classifies(model):
        raise InputError(
            f"{options.model} has no head that classifies (num_classes {model.num_classes}, global_pool "
            f"{model.global_pool!r}); choose weights with one: whitebox-crate list --pretrained"
        )
