"""Trains on composites, as the shipped weights were trained, by the labels of their objects alone.

    python -m recipes.train --data photographs --out runs/photographs
    python -m recipes.train --data garments --model crate_pico --out runs/garments

Other options, and the written files, are those of `whitebox-crate train`. Objects and backgrounds come from Debian
packages: tuxpaint-stamps-default, plasma-workspace-wallpapers and gnome-backgrounds, or dataset-fashion-mnist.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from recipes.backgrounds import noise_backgrounds, wallpapers
from recipes.composites import Composites
from recipes.objects import garments, photographs
from whitebox_crate.cli import answer
from whitebox_crate.cli.parser import Parser, positive
from whitebox_crate.cli.training import chosen_recipe, other_data, train_on
from whitebox_crate.cli.training_arguments import add_training
from whitebox_crate.errors import InputError, require
from whitebox_crate.training import Recipe, open_images


def build_parser() -> Parser:
    """The options: the data, and those of `whitebox-crate train`."""
    parser = Parser("python -m recipes.train", description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=positive, metavar="N", help="processor threads (default: PyTorch chooses)")
    add = parser.add_argument_group("data").add_argument
    add("--data", choices=("photographs", "garments"), default="photographs", help="objects (%(default)s)")
    add("--backgrounds", nargs="+", type=Path, default=[], metavar="FOLDER", help="more pictures behind photographs")
    add_training(parser, preset="composites", without=("crop", "flip"))
    return parser


def train_composites(options: argparse.Namespace) -> int:
    require("accelerate", "train")  # say that it is missing before the data are read
    preset = options.preset or "composites"
    recipe = chosen_recipe(options, preset)
    if options.backgrounds and options.data != "photographs":
        raise InputError(f"--backgrounds are for photographs, not for {options.data}")
    if options.validation and "/" not in options.validation:
        raise InputError(f"{options.data} have no split to name; give labelled images as --validation ./FOLDER")
    source, images = composites(options.data, recipe, options.backgrounds), None
    if options.validation:
        size, names = max(recipe.sizes), source.class_names
        opened = partial(open_images, options.validation, size=size, label_names=names)
        images = other_data(options.validation, opened)
    return train_on(options, source, recipe, preset, images)


def composites(data: str, recipe: Recipe, more_backgrounds: Sequence[Path] = ()) -> Composites:
    """Training composites of "photographs" or "garments", at the largest size of a recipe."""
    size = max(recipe.sizes)
    if data == "garments":
        return Composites(garments("train"), noise_backgrounds(2000, size, recipe.seed), size, data)
    backgrounds = wallpapers("train")
    if more_backgrounds:
        backgrounds = torch.cat([backgrounds, wallpapers("train", roots=more_backgrounds)])
    return Composites(photographs("train"), backgrounds, size, data)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command. Returns 0, or 1 after an error, with the message on stderr."""
    return answer(train_composites, build_parser().parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
