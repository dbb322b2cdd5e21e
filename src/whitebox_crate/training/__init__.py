"""The minimal supervised recipe, and composites of real objects to train and measure on."""

from .batches import Batch, Source, Stream
from .composites import Composites
from .data import Objects, garments, noise_backgrounds, photographs, wallpapers
from .loop import normalize, train
from .recipe import Recipe

__all__ = [
    "Batch",
    "Composites",
    "Objects",
    "Recipe",
    "Source",
    "Stream",
    "garments",
    "noise_backgrounds",
    "normalize",
    "photographs",
    "train",
    "wallpapers",
]
