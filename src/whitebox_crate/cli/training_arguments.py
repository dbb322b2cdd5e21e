"""The options that every training takes, each field of a recipe among them. No PyTorch here, as in `arguments`."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from ..training.presets import PRESETS
from ..training.recipe import Recipe
from .parser import Parser, positive


def add_training(parser: Parser, preset: str, without: Collection[str] = ()) -> None:
    """Adds the options that every training takes, whatever its data.

    Args:
        parser: Gets the options.
        preset: The default of --preset, for the help.
        without: Fields of `Recipe` that the data have no use for.
    """
    add = parser.section("model").add_argument
    add("--model", help="architecture to train from scratch (default: crate_nano)")
    add("--pretrained", metavar="NAME", help="weights to start from: name, name.tag, local-dir:PATH or hf-hub:ORG/NAME")
    add(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="OPTION=VALUE",
        help="options of the model, for example depth=6 img_size=96",
    )
    add = parser.section("validation").add_argument
    add(
        "--validation",
        metavar="SHARE|SPLIT|PATH",
        help="images to validate with: a share of each class to hold out (0.2), a split of the data, or other data "
        "(default: none)",
    )
    add(
        "--masks",
        type=Path,
        metavar="FOLDER",
        help="images with masks, to measure the IoU of attention: images/ and masks/, or VOC 2012 (default: none)",
    )
    add(
        "--validate-every",
        type=float,
        metavar="EPOCHS",
        help="epochs between validations (default: 1, or a hundredth of the run if that is longer). Counted in steps "
        "if the length of an epoch is unknown",
    )
    add = parser.section("run").add_argument
    add("--out", type=Path, metavar="FOLDER", required=True, help="folder of the run; a stopped run resumes")
    add(
        "--workers",
        type=int,
        metavar="N",
        default=0,
        help="processes that load images, for each training process (default: %(default)s)",
    )
    add(
        "--checkpoint-every",
        type=positive,
        metavar="STEPS",
        default=250,
        help="steps between checkpoints (default: %(default)s)",
    )
    add(
        "--keep",
        choices=("last", "best"),
        default="last",
        help="weights to keep; best is by validation (default: %(default)s)",
    )
    add(
        "--tracker",
        nargs="+",
        default=[],
        metavar="NAME",
        help="trackers of accelerate, for example tensorboard (default: none)",
    )
    add("--push-to-hub", metavar="ORG/NAME", help="Hub repository to upload the trained model to (default: none)")
    recipe = parser.add_argument_group(
        "recipe", "A preset sets all of these; an option changes one. In brackets: the value in each preset."
    )
    recipe.add_argument("--preset", choices=sorted(PRESETS), help=f"the recipe to start from (default: {preset})")
    meanings = _meanings()
    for field in dataclasses.fields(Recipe):
        if field.name not in without:
            _add_recipe_field(recipe, field, meanings.get(field.name, ""))


def _meanings() -> dict[str, str]:
    """The meaning of each field of a recipe: the first sentence of its docstring. (python -OO drops docstrings.)"""
    attributes = inspect.cleandoc(Recipe.__doc__ or "").partition("Attributes:")[2].partition("Raises:")[0]
    found = re.findall(r"^    (\w+): (.+?)\.(?:\s|$)", attributes, re.MULTILINE | re.DOTALL)
    return {name: " ".join(sentence.split()) for name, sentence in found}


def _add_recipe_field(parser: Any, field: dataclasses.Field[Any], meaning: str) -> None:
    flag, default = "--" + field.name.replace("_", "-"), field.default
    says = f"{meaning} ({_by_preset(field.name)})".strip()
    if isinstance(default, bool):
        parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=says)
    elif isinstance(default, tuple):
        parser.add_argument(flag, nargs="+", type=type(default[0]), help=says)
    else:
        parser.add_argument(flag, type=type(default), help=says)


def _by_preset(name: str) -> str:
    """The value of a field in each preset; presets of equal value are named together."""
    presets: dict[str, list[str]] = {}
    for preset, made in PRESETS.items():
        value = getattr(made.recipe, name)
        if name == "steps" and made.recipe.epochs:
            shown = "from the epochs"
        elif name == "sizes" and len(value) == 1:
            shown = "the model's"
        else:
            shown = (
                " ".join(map(str, value)) if isinstance(value, tuple) else f"{value:g}" if _is_number(value) else value
            )
        presets.setdefault(str(shown), []).append(preset)
    if len(presets) == 1:
        return next(iter(presets))
    return "; ".join(f"{', '.join(of)}: {value}" for value, of in presets.items())


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
