"""train: data, a recipe and a model at the command line."""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .._version import __version__
from ..errors import InputError, require
from ..evaluation.folders import LabelledImages, read_folder, read_voc
from ..factory import create_model
from ..loading import meta_init
from ..models import ImageTransformer
from ..pretrained_cfg import PretrainedCfg
from ..training import Composites, Recipe, Source, Stream, garments, noise_backgrounds, photographs, train, wallpapers
from ..training.checkpoints import checkpoints_of, make_run_folder
from ..training.datasets import Images, StreamedImages, open_images
from ..training.model_folder import finish, last_metrics, publish, write_recipe
from ..training.presets import PRESETS
from ..training.validation import Validation
from ._common import option

COMPOSITES = ("photographs", "garments")
OF_FILES = (  # what composites have no use for
    *("streaming", "images", "label_names", "subset", "revision", "image_column", "label_column"),
    *("crop", "flip"),
)


class _Data(NamedTuple):
    """What is trained on: its batches, the names of its classes, how many images if that is known, and all in words."""

    source: Source | Stream
    class_names: tuple[str, ...]
    images: int | None
    words: str


def train_model(options: argparse.Namespace) -> int:
    accelerate = require("accelerate", "train")  # or its lack would be told after the data are read
    preset, recipe = _recipe(options)
    data = _open(options, recipe)
    if recipe.epochs:
        if data.images is None:
            raise InputError(f"how many images {options.data} has is not known, nor what an epoch is: give --steps")
        recipe = recipe.resolved(data.images)
    torch.manual_seed(recipe.seed)
    model = _model(options, recipe, data)
    validation = _validation(options, recipe, data)
    make_run_folder(options.out)
    if not checkpoints_of(options.out):  # one that goes on has the same recipe, or is refused
        write_recipe(options.out, recipe, data=data.words, preset=preset)
    train(
        model,
        data.source,
        recipe,
        options.out,
        validation=validation,
        workers=options.workers,
        checkpoint_every=options.checkpoint_every,
        trackers=options.tracker,
    )
    if accelerate.PartialState().is_main_process:
        metrics = last_metrics(options.out)
        folder = finish(model, options.out / "model", recipe, data=data.words, metrics=metrics, preset=preset)
        print(f"{folder}  (weights, config, recipe, metrics and card)")
        print(f"create_model('local-dir:{folder}', pretrained=True) loads it")
        if options.push_to_hub:
            print(publish(folder, options.push_to_hub))
    return 0


def _recipe(options: argparse.Namespace) -> tuple[str, Recipe]:
    """The name of the preset, and its recipe with what was given in place of its own."""
    if options.model and options.pretrained:
        raise InputError(f"--pretrained {options.pretrained} names the model too: leave --model {options.model} out")
    if options.preset == "linear-probe" and not options.pretrained:
        raise InputError("a linear probe tells what weights know: give them by --pretrained")
    composites = options.data in COMPOSITES
    name = options.preset or ("composites" if composites else "finetune" if options.pretrained else "imagenet1k")
    recipe = PRESETS[name].recipe
    given = {field.name: getattr(options, field.name) for field in dataclasses.fields(Recipe)}
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
    given = {key: value for key, value in given.items() if value is not None}
    if "steps" in given and given.setdefault("epochs", 0.0):
        raise InputError(f"--steps {options.steps} and --epochs {options.epochs:g} say the same: give one of them")
    with meta_init():  # the options are looked at before data are read, and the size is that of the weights
        model = create_model(_name(options), **_options(options))
    if "sizes" not in given and len(recipe.sizes) == 1:
        given["sizes"] = (min(model.img_size),)
    if len(given.get("sizes", ())) == 1:
        given.setdefault("size_starts", (0.0,))
    return name, dataclasses.replace(recipe, **given)


def _name(options: argparse.Namespace) -> str:
    name: str = options.pretrained or options.model or "crate_nano"
    return name


def _options(options: argparse.Namespace) -> dict[str, Any]:
    return dict(option(text) for text in options.set)


def _open(options: argparse.Namespace, recipe: Recipe) -> _Data:
    size = max(recipe.sizes)
    if options.backgrounds and options.data != "photographs":
        raise InputError(f"--backgrounds are for photographs, not for {options.data}")
    if options.data not in COMPOSITES:
        images = _images(options, recipe, options.data, options.split, _label_names(options.label_names))
        count = images.images if isinstance(images, StreamedImages) else len(images)
        of = f" of {len(images.class_names)} classes" if recipe.trains != "pixels" else ""
        known = "images" if count is None else f"{count:,} images"
        return _Data(images, images.class_names, count, f"{options.data}, {options.split}: {known}{of}")
    given = ["split"] * (options.split != "train") + [name for name in OF_FILES if getattr(options, name)]
    if given:
        flags = ", ".join("--" + name.replace("_", "-") for name in given)
        raise InputError(f"{options.data} are drawn, not read: leave {flags} out")
    if options.data == "photographs":
        objects, backgrounds = photographs("train"), wallpapers("train")
        if options.backgrounds:
            backgrounds = torch.cat([backgrounds, wallpapers("train", roots=options.backgrounds)])
    else:
        objects, backgrounds = garments("train"), noise_backgrounds(2000, size, recipe.seed)
    words = f"{options.data}: composites of {len(objects.labels):,} objects of {len(objects.class_names)} classes"
    return _Data(Composites(objects, backgrounds, size), objects.class_names, None, words)


def _images(
    options: argparse.Namespace, recipe: Recipe, where: str, split: str, label_names: Sequence[str] | None
) -> Images | StreamedImages:
    return open_images(
        where,
        split=split,
        streaming=options.streaming,
        labelled=recipe.trains != "pixels",
        crop=recipe.crop,
        flip=recipe.flip,
        size=max(recipe.sizes),
        image_column=options.image_column,
        label_column=options.label_column,
        label_names=label_names,
        subset=options.subset,
        revision=options.revision,
        images=options.images,
    )


def _label_names(path: Path | None) -> list[str] | None:
    try:
        return None if path is None else path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}; it is text, the name of a class a line") from error


def _model(options: argparse.Namespace, recipe: Recipe, data: _Data) -> ImageTransformer:
    """The model for the classes of the data and the sizes of the recipe; its facts are true once it is trained."""
    known = {"img_size": max(recipe.sizes), "dynamic_img_size": True}
    classes = () if recipe.trains == "pixels" else data.class_names
    if classes:
        known["num_classes"] = len(classes)
    made = create_model(_name(options), pretrained=bool(options.pretrained), **{**known, **_options(options)})
    if not isinstance(made, ImageTransformer):
        raise InputError(f"{_name(options)} makes a {type(made).__name__}, which is not trained here")
    if classes and made.num_classes < len(classes):
        raise InputError(f"{options.data} have {len(classes)} classes, the model has {made.num_classes}")
    cfg, origin = made.pretrained_cfg, f", from {options.pretrained}" if options.pretrained else ""
    made.pretrained_cfg = PretrainedCfg(
        input_size=(made.in_chans, *made.img_size),
        mean=cfg.mean,
        std=cfg.std,
        interpolation=cfg.interpolation,
        num_classes=made.num_classes,
        label_names=classes,
        license=cfg.license if options.pretrained else "",
        origin=f"whitebox-crate {__version__} train on {options.data}, seed {recipe.seed}{origin}",
    )
    return made


def _validation(options: argparse.Namespace, recipe: Recipe, data: _Data) -> Validation | None:
    if options.validation and recipe.trains == "pixels":
        raise InputError("a model that learns pixels names nothing: leave --validation out; --masks measures it")
    images = None
    if options.validation:
        other = "/" in options.validation
        if not other and options.data in COMPOSITES:
            raise InputError(f"{options.data} have no split to name; give labelled images as --validation ./FOLDER")
        where, split = (options.validation, "validation") if other else (options.data, options.validation)
        images = _images(options, recipe, where, split, data.class_names)
    masks = None if options.masks is None else _masks(options.masks)
    if images is None and masks is None:
        return None
    unit = 1.0 if data.images is None else data.images / recipe.batch_size
    wanted = options.validate_every
    if wanted is None:
        wanted = options.checkpoint_every if data.images is None else 1.0
    if not 0 < wanted < math.inf:
        raise InputError(f"--validate-every is a number of epochs or steps, more than 0, not {wanted:g}")
    return Validation(images, max(1, round(wanted * unit)), masks=masks)


def _masks(root: Path) -> LabelledImages:
    data = read_folder(root) if (root / "images").is_dir() else read_voc(root)
    data.check_files()
    return data
