"""A whole run: makes a recipe from a preset, a model from data and a name, trains, and writes a folder."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch

from ..errors import InputError, UnknownNameError, require
from ..factory import create_model
from ..loading import made_empty
from ..models import ImageTransformer
from ..models._wrappers import unwrap
from .batches import Source, Stream
from .best import best_of
from .facts import class_names_of, count_of, described, name_of, settled, trained_cfg
from .loop import Keep, Measures, train
from .model_folder import finish, last_metrics, write_recipe
from .presets import PRESETS
from .recipe import Recipe


def recipe_of(preset: str, model: str, *, model_options: dict[str, Any] | None = None, **changes: Any) -> Recipe:
    """A preset's recipe with some numbers changed. Other numbers follow from these.

    Steps replace epochs. Images have the size of the model, unless the preset has several sizes.

    Args:
        preset: Name in `PRESETS`.
        model: Name of the model to train (see `create_model`); its weights are ignored.
        model_options: Options of the model.
        **changes: Fields of `Recipe`.

    Raises:
        UnknownNameError: If a preset, model, field or value does not exist.
        InputError: If both steps and epochs are given, a number is out of range, an option is unknown, or the kind of
            model cannot be trained here.
    """
    if preset not in PRESETS:
        raise UnknownNameError.of("preset", preset, PRESETS)
    recipe = PRESETS[preset].recipe
    for name in changes.keys() - vars(recipe).keys():
        raise UnknownNameError.of("field of a recipe", name, vars(recipe))
    if "steps" in changes and changes.setdefault("epochs", 0.0):
        raise InputError(
            f"steps {changes['steps']} and epochs {changes['epochs']:g} say the same, how long: give one of them"
        )
    if changes.get("epochs") == 0 and "steps" not in changes:  # else the steps of another preset would count
        raise InputError("0 epochs train nothing: give more, or steps")
    make = partial(_made, model, **(model_options or {}))
    size = min((made_empty(make) or make()).img_size)
    if "sizes" not in changes and len(recipe.sizes) == 1:
        changes["sizes"] = (size,)
    if len(changes.get("sizes", ())) == 1:
        changes.setdefault("size_starts", (0.0,))
    return replace(recipe, **changes)


def fit_batch(recipe: Recipe, source: Source | Stream) -> Recipe:
    """The recipe if there are enough images for its batch; else with the largest batch that half of the images fill.

    Batches are powers of two, which processes share best. Training needs at least a batch of images, and an epoch of
    two or more steps moves the weights more often than one step.

    Args:
        recipe: The numbers.
        source: The training data. If their number of images is unknown, nothing changes.
    """
    count = count_of(source)
    if count is None or count >= recipe.batch_size:
        return recipe
    return replace(recipe, batch_size=1 << max(0, (count // 2).bit_length() - 1))


def make_model(
    name: str, source: Source | Stream, recipe: Recipe, *, pretrained: bool = False, **model_options: Any
) -> ImageTransformer:
    """Makes a model for the classes of the data and the sizes of the recipe. Its config records its training.

    The recipe's seed draws fresh weights. Mean, deviation and licence come from the initial weights.

    Args:
        name: Name of the model; see `create_model`.
        source: The training data.
        recipe: The recipe.
        pretrained: Whether to start from the weights of that name.
        **model_options: Options of `create_model`; they win over data and recipe.

    Raises:
        InputError: If the kind of model cannot be trained here, or it has fewer classes than the data.
        UnknownNameError: If there is no such model.
        WeightsError: If the weights cannot be fetched.
    """
    classes = () if recipe.objective == "mae" else class_names_of(source)
    known: dict[str, Any] = {"img_size": max(recipe.sizes), "dynamic_img_size": True}
    if classes:
        known["num_classes"] = len(classes)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(recipe.seed)
        made = _made(name, pretrained=pretrained, **{**known, **model_options})
    if classes and made.num_classes < len(classes):
        raise InputError(f"{name_of(source)} have {len(classes)} classes, the model has {made.num_classes}")
    made.pretrained_cfg = trained_cfg(made, source, recipe, start=name if pretrained else "")
    return made


def _made(name: str, **options: Any) -> ImageTransformer:
    made = create_model(name, **options)
    if not isinstance(made, ImageTransformer):
        raise InputError(f"{name} makes a {type(made).__name__}, which is not trained here")
    return made


def train_and_save(
    model: ImageTransformer,
    source: Source | Stream,
    recipe: Recipe,
    out: str | Path,
    *,
    preset: str = "",
    validation: Measures | None = None,
    workers: int = 0,
    checkpoint_every: int = 250,
    trackers: Sequence[str] = (),
    keep: Keep = "last",
) -> Path | None:
    """Trains a model with `train` and records its training, as `whitebox-crate train` does.

    `out` gets recipe.json at the start, the files of `train`, and the trained model (`finish`) in `model/`. A call with
    the same arguments resumes a killed run.

    Args:
        model: The model; `make_model` makes one.
        source: The source of batches. Its class names, crop and number of images are recorded.
        recipe: The numbers.
        out: Folder of the run.
        preset: The recipe's name in `PRESETS`, if it has one.
        validation: Measurements during training.
        workers: See `train`.
        checkpoint_every: See `train`.
        trackers: See `train`.
        keep: See `train`. With "best", metrics and card have the numbers of the best weights.

    Returns:
        The folder of the trained model; None in all processes of a run but the first.

    Raises:
        WhiteboxCrateError: See `train` and `finish`.

    Example:
        >>> source = open_images("pictures", split="all", size=32)
        >>> recipe = recipe_of("finetune", "crate_pico", steps=2, batch_size=4)
        >>> model = make_model("crate_pico", source, recipe)
        >>> folder = train_and_save(model, source, recipe, "run")
        >>> model = create_model(f"local-dir:{folder}", pretrained=True)
    """
    accelerate = require("accelerate", "train")
    recipe, words = settled(recipe, source), described(source)
    out = Path(out)

    def begin(folder: Path) -> None:
        whole = cast(ImageTransformer, unwrap(model))
        write_recipe(folder, recipe, data=words, class_names=whole.pretrained_cfg.label_names, preset=preset)
        print(f"{words}\n{recipe.summary()}", file=sys.stderr)

    model = train(
        model,
        source,
        recipe,
        out,
        validation=validation,
        workers=workers,
        checkpoint_every=checkpoint_every,
        trackers=trackers,
        keep=keep,
        at_start=begin,
    )
    if not accelerate.PartialState().is_main_process:
        return None
    metrics = last_metrics(out)
    if keep == "best":  # the numbers at the end of training belong to other weights
        skipped = {name: value for name, value in metrics.items() if name == "training_skipped"}
        metrics = {**best_of(out), **skipped}
    measured_on = getattr(validation, "description", "")
    return finish(model, out / "model", recipe, data=words, metrics=metrics, measured_on=measured_on, preset=preset)
