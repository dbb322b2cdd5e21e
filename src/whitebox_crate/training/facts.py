"""What a source says of itself: a run records that, whatever its recipe said."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..errors import InputError
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
