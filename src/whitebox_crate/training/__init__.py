"""The minimal recipe, on images of one's own or on composites of real objects, from data to a model card."""

from .batches import Batch, Source, Stream
from .composites import Composites
from .data import Objects, garments, noise_backgrounds, photographs, wallpapers
from .datasets import Images, StreamedImages, open_images
from .loop import normalize, train
from .model_folder import finish, last_metrics, publish
from .presets import PRESETS, Preset
from .recipe import Recipe
from .validation import Validation

__all__ = [
    "PRESETS",
    "Batch",
    "Composites",
    "Images",
    "Objects",
    "Preset",
    "Recipe",
    "Source",
    "Stream",
    "StreamedImages",
    "Validation",
    "finish",
    "garments",
    "last_metrics",
    "noise_backgrounds",
    "normalize",
    "open_images",
    "photographs",
    "publish",
    "train",
    "wallpapers",
]
