"""The minimal recipe, on images of one's own or on composites of real objects, from data to a model card."""

from typing import TYPE_CHECKING

from .._lazy import attach

_NAMES = {
    "batches": ["Batch", "Source", "Stream"],
    "composites": ["Composites"],
    "data": ["Objects", "garments", "noise_backgrounds", "photographs", "wallpapers"],
    "datasets": ["Images", "StreamedImages", "open_images"],
    "loop": ["normalize", "train"],
    "model_folder": ["finish", "last_metrics", "publish"],
    "presets": ["PRESETS", "Preset"],
    "recipe": ["Recipe"],
    "validation": ["Validation"],
}

if TYPE_CHECKING:
    from .batches import Batch, Source, Stream
    from .composites import Composites
    from .data import Objects, garments, noise_backgrounds, photographs, wallpapers
    from .datasets import Images, StreamedImages, open_images
    from .loop import normalize, train
    from .model_folder import finish, last_metrics, publish
    from .presets import PRESETS, Preset
    from .recipe import Recipe
    from .validation import Validation
else:
    __getattr__, __dir__ = attach(__name__, _NAMES)

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
