"""The minimal training recipe, for your own images, from data to a model card."""

from typing import TYPE_CHECKING

from .._lazy import attach

_NAMES = {
    "batches": ["Batch", "Source", "Stream"],
    "datasets": ["ImageDataset", "StreamedImageDataset", "open_images"],
    "loop": ["normalize", "train"],
    "model_folder": ["finish", "last_metrics", "push_to_hub"],
    "presets": ["PRESETS", "Preset"],
    "recipe": ["Recipe"],
    "run": ["fit_batch", "make_model", "recipe_of", "train_and_save"],
    "validation": ["Validation"],
}

if TYPE_CHECKING:
    from .batches import Batch, Source, Stream
    from .datasets import ImageDataset, StreamedImageDataset, open_images
    from .loop import normalize, train
    from .model_folder import finish, last_metrics, push_to_hub
    from .presets import PRESETS, Preset
    from .recipe import Recipe
    from .run import fit_batch, make_model, recipe_of, train_and_save
    from .validation import Validation
else:
    __getattr__, __dir__ = attach(__name__, _NAMES)

__all__ = [
    "PRESETS",
    "Batch",
    "ImageDataset",
    "Preset",
    "Recipe",
    "Source",
    "Stream",
    "StreamedImageDataset",
    "Validation",
    "finish",
    "fit_batch",
    "last_metrics",
    "make_model",
    "normalize",
    "open_images",
    "push_to_hub",
    "recipe_of",
    "train",
    "train_and_save",
]
