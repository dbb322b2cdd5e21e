"""The facts that a source has about itself. A run records them, whatever its recipe says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from .._version import __version__
from ..errors import InputError
from ..models import ImageTransformer
from ..pretrained_cfg import PretrainedCfg
from .recipe import Recipe


def class_names_of(source: Any) -> tuple[str, ...]:
    """The names of a source's classes, if it has them."""
    return tuple(getattr(source, "class_names", ()))


def count_of(source: Any) -> int | None:
    """The number of images of a source, if it has an end and knows it."""
    return len(source) if hasattr(source, "__len__") else getattr(source, "images", None)


def fingerprint_of(source: Any) -> dict[str, Any]:
    """The fingerprint of a source's data, if it has one."""
    return dict(getattr(source, "fingerprint", {}))


def name_of(source: Any) -> str:
    """The name of a source, or else of its class."""
    return getattr(source, "name", "") or type(source).__name__


def described(source: Any) -> str:
    """A source in words."""
    if said := getattr(source, "description", ""):
        return str(said)
    count, classes = count_of(source), len(class_names_of(source))
    known = "images" if count is None else f"{count:,} images"
    return f"{name_of(source)}: {known}" + (f" of {classes} classes" if classes else "")


def settled(recipe: Recipe, source: Any) -> Recipe:
    """The recipe with the values that the source decides: the steps of its epochs, crop and flip.

    Raises:
        InputError: If the recipe has epochs and the source does not know its number of images.
    """
    count = count_of(source)
    if recipe.epochs and count is None:
        raise InputError(
            f"{recipe.epochs:g} epochs need a number of images, but {type(source).__name__} has none; give steps"
        )
    pictures = {name: getattr(source, name) for name in ("crop", "flip") if hasattr(source, name)}
    recipe = replace(recipe, **pictures)
    return recipe if count is None or not recipe.epochs else recipe.resolved(count)


def trained_cfg(model: ImageTransformer, source: Any, recipe: Recipe, start: str | None = None) -> PretrainedCfg:
    """The facts about a model trained by this recipe. Mean, deviation and licence come from its initial weights.

    Args:
        model: The model before training.
        source: The training data. If they name no classes, the model keeps its names if their number fits.
        recipe: The recipe.
        start: Name of the initial weights; "" for fresh ones, None to take it from the report of loading.
    """
    cfg, about = model.pretrained_cfg, f"whitebox-crate {__version__} train on {name_of(source)}, seed {recipe.seed}"
    names = class_names_of(source) or cfg.label_names
    if recipe.objective == "mae" or len(names) > model.num_classes:
        names = ()
    if cfg.origin.startswith(about):  # already recorded
        return replace(cfg, num_classes=model.num_classes, label_names=names)
    if start is None:
        start = model.load_report.source if model.load_report else ""
    return PretrainedCfg(
        input_size=(model.in_chans, *model.img_size),
        mean=cfg.mean,
        std=cfg.std,
        interpolation=cfg.interpolation,
        num_classes=model.num_classes,
        label_names=names,
        first_conv=cfg.first_conv,
        license=cfg.license if start or not cfg.tag else "",
        origin=about + (f", from {start}" if start else ""),
    )
