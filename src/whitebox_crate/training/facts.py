"""What a source says of itself: a run records that, whatever its recipe said."""

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
    """How many images a source has, if it has an end and knows it."""
    return len(source) if hasattr(source, "__len__") else getattr(source, "images", None)


def fingerprint_of(source: Any) -> dict[str, Any]:
    """What tells a source's data from others, if it says so."""
    return dict(getattr(source, "fingerprint", {}))


def name_of(source: Any) -> str:
    """What a source is called, by its class if by nothing else."""
    return getattr(source, "name", "") or type(source).__name__


def described(source: Any) -> str:
    """What a source has, in words."""
    if said := getattr(source, "description", ""):
        return str(said)
    count, classes = count_of(source), len(class_names_of(source))
    known = "images" if count is None else f"{count:,} images"
    return f"{name_of(source)}: {known}" + (f" of {classes} classes" if classes else "")


def settled(recipe: Recipe, source: Any) -> Recipe:
    """The recipe with what the source decides: how many steps its epochs are, and what part of a picture is taken.

    Raises:
        InputError: If the recipe has epochs and the source does not know how many images it has.
    """
    count = count_of(source)
    if recipe.epochs and count is None:
        raise InputError(
            f"{recipe.epochs:g} epochs of a {type(source).__name__}, which does not know how many images it has; give "
            "steps"
        )
    pictures = {name: getattr(source, name) for name in ("crop", "flip") if hasattr(source, name)}
    recipe = replace(recipe, **pictures)
    return recipe if count is None or not recipe.epochs else recipe.resolved(count)


def trained_cfg(model: ImageTransformer, source: Any, recipe: Recipe, start: str | None = None) -> PretrainedCfg:
    """What is true of a model that is trained by this recipe; of what it started from, mean, deviation and licence.

    Args:
        model: The model, not yet trained.
        source: What it is trained on. If it names no classes, the model keeps its names, should it have as many.
        recipe: What it is trained by.
        start: What the weights are called that it starts from; "" for fresh ones, None if its report on loading says.
    """
    cfg, about = model.pretrained_cfg, f"whitebox-crate {__version__} train on {name_of(source)}, seed {recipe.seed}"
    names = class_names_of(source) or cfg.label_names
    if recipe.objective == "mae" or len(names) > model.num_classes:
        names = ()
    if cfg.origin.startswith(about):  # already said
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
