"""A run as a whole: a preset becomes a recipe, data and a name become a model, and training ends with a folder."""

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
    """A preset's recipe with other numbers in place of some; what is not given of it follows from the rest.

    Steps take the place of epochs; images have the size of the model, unless the preset has several sizes.

    Args:
        preset: Name in `PRESETS`.
        model: Name of the model that is to be trained, as `create_model` takes it; its weights are not looked at.
        model_options: Options of the model.
        **changes: Fields of `Recipe`.

    Raises:
        UnknownNameError: If there is no such preset, model, field or value of one.
        InputError: If steps and epochs are given, a number means nothing, an option is unknown, or the model is of no
            kind that is trained here.
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
    if changes.get("epochs") == 0 and "steps" not in changes:  # or the steps of another preset would count
        raise InputError("0 epochs train nothing: give more, or steps")
    make = partial(_made, model, **(model_options or {}))
    size = min((made_empty(make) or make()).img_size)
    if "sizes" not in changes and len(recipe.sizes) == 1:
        changes["sizes"] = (size,)
    if len(changes.get("sizes", ())) == 1:
        changes.setdefault("size_starts", (0.0,))
    return replace(recipe, **changes)


def fit_batch(recipe: Recipe, source: Source | Stream) -> Recipe:
    """The recipe, if there are as many images as its batch has; else with the largest batch that half of them fill.

    Batches are powers of two, as processes share them best. With fewer images than a batch nothing can be trained, and
    an epoch of two steps or more moves the weights more often than one.

    Args:
        recipe: The numbers.
        source: What is to be trained on; one that does not know how many images it has changes nothing.
    """
    count = count_of(source)
    if count is None or count >= recipe.batch_size:
        return recipe
    return replace(recipe, batch_size=1 << max(0, (count // 2).bit_length() - 1))


def make_model(
    name: str, source: Source | Stream, recipe: Recipe, *, pretrained: bool = False, **model_options: Any
) -> ImageTransformer:
    """A model for the classes of the data and the sizes of the recipe, whose config says how it will have come about.

    Fresh weights are drawn by the recipe's seed. Mean, deviation and licence are those of the weights to start from.

    Args:
        name: As `create_model` takes it.
        source: What the model is to be trained on.
        recipe: What it is to be trained by.
        pretrained: Whether to start from the weights of that name.
        **model_options: As `create_model` takes them; they go before what data and recipe say.

    Raises:
        InputError: If the model is of no kind that is trained here, or has fewer classes than the data.
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
    """Trains a model by `train` and writes all that tells how it came about: what `whitebox-crate train` does.

    `out` gets recipe.json at the start, what `train` writes, and the trained model (`finish`) in `model/`. A call with
    the same arguments goes on where a killed one was.

    Args:
        model: The model; `make_model` makes one.
        source: Where batches come from. Class names, crop and number of images are recorded as it has them.
        recipe: The numbers.
        out: Folder of the run.
        preset: Name in `PRESETS` that the recipe was made from, if it was.
        validation: What to measure on the way.
        workers: As `train`.
        checkpoint_every: As `train`.
        trackers: As `train`.
        keep: As `train`; of the "best" weights, the numbers in metrics and card are those that they were kept for.

    Returns:
        The folder of the trained model; None in all processes of a run but the first.

    Raises:
        WhiteboxCrateError: As `train` and `finish`.

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
    if keep == "best":  # what training found at the end is of other weights
        skipped = {name: value for name, value in metrics.items() if name == "training_skipped"}
        metrics = {**best_of(out), **skipped}
    measured_on = getattr(validation, "description", "")
    return finish(model, out / "model", recipe, data=words, metrics=metrics, measured_on=measured_on, preset=preset)
