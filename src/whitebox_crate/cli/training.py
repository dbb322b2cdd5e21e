"""train: the recipe at the command line."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..errors import InputError, require
from ..factory import create_model
from ..hub import save_pretrained
from ..models import PretrainedCfg
from ..registry import check_options
from ..training import Composites, Recipe, garments, noise_backgrounds, photographs, train, wallpapers
from ._common import command, option


def add_train(commands: Any) -> None:
    """Adds the command `train`."""
    training = command(commands, "train", _train, "train on composites of objects over backgrounds")
    training.add_argument("--model", default="crate_nano", help="architecture (%(default)s)")
    training.add_argument("--set", nargs="+", default=[], metavar="OPTION=VALUE", help="options of the model")
    training.add_argument("--data", choices=("photographs", "garments"), default="photographs")
    training.add_argument("--out", type=Path, required=True, help="folder; one that holds a run is gone on with")
    for field in dataclasses.fields(Recipe):
        _add_recipe_option(training, field)


def _add_recipe_option(parser: argparse.ArgumentParser, field: dataclasses.Field[Any]) -> None:
    flag, default = "--" + field.name.replace("_", "-"), field.default
    if isinstance(default, tuple):
        parser.add_argument(flag, nargs="+", type=type(default[0]), default=default, help=f"({default})")
    else:
        parser.add_argument(flag, type=type(default), default=default, help=f"({default})")


def _train(options: argparse.Namespace) -> int:
    recipe = Recipe(**{field.name: _recipe_value(options, field) for field in dataclasses.fields(Recipe)})
    if options.data == "photographs":
        objects, backgrounds = photographs("train"), wallpapers("train")
    else:
        objects = garments("train")
        backgrounds = noise_backgrounds(2000, max(recipe.sizes), recipe.seed)
    torch.manual_seed(recipe.seed)
    model_options = dict(option(text) for text in options.set)
    check_options(options.model, model_options)
    size = max(recipe.sizes)
    defaults = {"num_classes": len(objects.class_names), "img_size": size, "dynamic_img_size": True}
    model = create_model(options.model, **{**defaults, **model_options})
    model.pretrained_cfg = PretrainedCfg(
        input_size=(3, *model.img_size),
        num_classes=model.num_classes,
        label_names=objects.class_names,
        origin=f"whitebox-crate {__version__} train on {options.data}, seed {recipe.seed}",
    )
    if model.num_classes < len(objects.class_names):
        raise InputError(f"{options.data} have {len(objects.class_names)} classes, the model has {model.num_classes}")
    train(model, Composites(objects, backgrounds, size), recipe, options.out)
    if not require("accelerate", "train").PartialState().is_main_process:
        return 0
    folder = save_pretrained(model, options.out / "model")
    print(f"{folder}  (create_model('local-dir:{folder}', pretrained=True) loads it)")
    return 0


def _recipe_value(options: argparse.Namespace, field: dataclasses.Field[Any]) -> Any:
    value = getattr(options, field.name)
    return tuple(value) if isinstance(value, list) else value
