"""The minimal supervised recipe, and composites of real objects to train and measure on."""

from .composites import Batch, Composites
from .data import Objects, garments, noise_backgrounds, photographs, wallpapers
from .recipe import Recipe, Source, normalize, train

__all__ = [
    "Batch",
    "Composites",
    "Objects",
    "Recipe",
    "Source",
    "garments",
    "noise_backgrounds",
    "normalize",
    "photographs",
    "train",
    "wallpapers",
]
