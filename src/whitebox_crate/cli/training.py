"""train: trains a model on data by a recipe, from the command line."""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..errors import InputError, UnknownNameError, require
from ..evaluation.folders import LabelledImages, read_folder, read_voc
from ..training.batches import Source, Stream
from ..training.datasets import ImageDataset, StreamedImageDataset, open_images
from ..training.facts import count_of, fingerprint_of, name_of, settled
from ..training.model_folder import push_to_hub
from ..training.recipe import Recipe
from ..training.run import fit_batch, make_model, recipe_of, train_and_save
from ..training.validation import Ordered, Validation
from ._common import option

IN_RECIPES = ("photographs", "garments")


def train_model(options: argparse.Namespace) -> int:
    require("accelerate", "train")  # say that it is missing before the data are read
    if options.data in IN_RECIPES:
        raise InputError(
            f"composites of {options.data} are made in a clone of the project: python -m recipes.train --data "
            f"{options.data} (it takes the same options for model, validation, run and recipe, except --crop and "
            f"--flip); if you mean a folder of that name, give ./{options.data}"
        )
    preset = options.preset or ("finetune" if options.pretrained else "imagenet1k")
    recipe = chosen_recipe(options, preset)
    share = _share(options.validation or "")
    images = _images(options, recipe, options.data, options.split, _label_names(options.label_names))
    to_validate: Ordered | None = None
    if share:
        if isinstance(images, StreamedImageDataset):
            raise InputError(
                f"streamed images cannot be held out by --validation {share:g}: name a split or a folder instead"
            )
        images, to_validate = images.hold_out(share, recipe.seed)
    elif options.validation:
        to_validate = _to_validate(options, recipe, images.class_names)
        if (known := fingerprint_of(images)) and known == fingerprint_of(to_validate):
            raise InputError(
                f"--validation {options.validation} has the images of the training data, which the model may know by "
                "heart: hold out a share, for example --validation 0.2, or give other images"
            )
    return train_on(options, images, recipe, preset, to_validate)


def _share(text: str) -> float:
    """The share of the images to hold out; 0 if --validation asks for something else."""
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        return 0.0
    if not 0 < share < 1:
        raise InputError(f"--validation {text} is not a share of the images: give one between 0 and 1, for example 0.2")
    return share


def _to_validate(options: argparse.Namespace, recipe: Recipe, names: Sequence[str]) -> Ordered:
    """The images that --validation names: a split of the data, or else other data."""
    if "/" not in options.validation:
        try:
            return _images(options, recipe, options.data, options.validation, names)
        except UnknownNameError:
            if not Path(options.validation).exists():
                raise
    return other_data(options.validation, partial(_images, options, recipe, options.validation, label_names=names))


def other_data(where: str, opened: Callable[..., Ordered]) -> Ordered:
    """Other data to validate with: its validation split, or all of it if it has no splits.

    Args:
        where: Folder, file, pattern or name on the Hub.
        opened: Opens a split of the data.
    """
    try:
        return opened(split="validation")
    except UnknownNameError:
        if Path(where).exists():
            with suppress(UnknownNameError):
                return opened(split="all")
        raise


def chosen_recipe(options: argparse.Namespace, preset: str) -> Recipe:
    """The recipe of a preset, changed by the options. Options are checked before data are read."""
    if options.model and options.pretrained:
        raise InputError(f"--pretrained {options.pretrained} names the model too: leave --model {options.model} out")
    if preset == "linear-probe" and not options.pretrained:
        raise InputError("--preset linear-probe needs pretrained weights: give them with --pretrained")
    given = {field.name: getattr(options, field.name, None) for field in dataclasses.fields(Recipe)}
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
    given = {key: value for key, value in given.items() if value is not None}
    recipe = recipe_of(preset, _name(options), model_options=_model_options(options), **given)
    if options.validation and recipe.objective == "mae":
        raise InputError(
            "a model that learns pixels (mae) has no classes to validate: use --masks in place of --validation"
        )
    if options.keep == "best" and not options.validation and not options.masks:
        raise InputError("--keep best needs a validation to choose by: give --validation or --masks")
    return recipe


def train_on(
    options: argparse.Namespace, source: Source | Stream, recipe: Recipe, preset: str, to_validate: Ordered | None
) -> int:
    """Trains the model of the options on a source, as the other options say."""
    if recipe.epochs and count_of(source) is None:
        raise InputError(
            f"the number of images in {name_of(source)} is unknown, and so is the length of an epoch: give --steps"
        )
    if options.batch_size is None and (fitting := fit_batch(recipe, source)) != recipe:
        if os.environ.get("RANK", "0") == "0":
            print(
                f"batches of {fitting.batch_size} images: there are too few images for {recipe.batch_size}",
                file=sys.stderr,
            )
        recipe = fitting
    torch.manual_seed(recipe.seed)  # so that random parts of training, such as dropout, repeat
    model = make_model(_name(options), source, recipe, pretrained=bool(options.pretrained), **_model_options(options))
    folder = train_and_save(
        model,
        source,
        recipe,
        options.out,
        preset=preset,
        validation=_validation(options, source, recipe, to_validate),
        workers=options.workers,
        checkpoint_every=options.checkpoint_every,
        trackers=options.tracker,
        keep=options.keep,
    )
    if folder:
        print(f"{folder}  (weights, config, recipe, metrics and card)")
        print(f"create_model('local-dir:{folder}', pretrained=True) loads it")
        if options.push_to_hub:
            print(push_to_hub(folder, options.push_to_hub))
    return 0


def _name(options: argparse.Namespace) -> str:
    name: str = options.pretrained or options.model or "crate_nano"
    return name


def _model_options(options: argparse.Namespace) -> dict[str, Any]:
    return dict(option(text) for text in options.set)


def _images(
    options: argparse.Namespace, recipe: Recipe, where: str, split: str, label_names: Sequence[str] | None
) -> ImageDataset | StreamedImageDataset:
    """The images of a split, opened as the data options say."""
    return open_images(
        where,
        split=split,
        streaming=options.streaming,
        labelled=recipe.objective != "mae",
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
        raise InputError(f"{path} cannot be read: {error}; give a text file with one class name per line") from error


def _validation(
    options: argparse.Namespace, source: Source | Stream, recipe: Recipe, images: Ordered | None
) -> Validation | None:
    masks = None if options.masks is None else _masks(options.masks)
    if images is None and masks is None:
        return None
    count, wanted, steps = count_of(source), options.validate_every, settled(recipe, source).steps
    epoch = 1.0 if count is None else count / recipe.batch_size
    if wanted is None:  # not after each epoch, if epochs have few steps
        every = options.checkpoint_every if count is None else max(round(epoch), steps // 100)
    elif 0 < wanted < math.inf:
        every = round(wanted * epoch)
    else:
        raise InputError(f"--validate-every must be above 0 (epochs, or steps), not {wanted:g}")
    return Validation(images, max(1, every), masks=masks)


def _masks(root: Path) -> LabelledImages:
    data = read_folder(root) if (root / "images").is_dir() else read_voc(root)
    data.check_files()
    return data
