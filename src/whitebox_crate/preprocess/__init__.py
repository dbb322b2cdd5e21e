"""Turns images into tensors, with the resize, crop and normalisation that a set of weights was evaluated with."""

from typing import TYPE_CHECKING

from .._deprecated import moved_names
from .photographs import SeenPhoto, best_short_side, fit_photo, grid_for, resize_to_grid
from .pixels import image_to_tensor, to_pillow
from .transform import Transform, create_transform, resolve_data_config

__all__ = [
    "SeenPhoto",
    "Transform",
    "best_short_side",
    "create_transform",
    "fit_photo",
    "grid_for",
    "image_to_tensor",
    "resize_to_grid",
    "resolve_data_config",
    "to_pillow",
]

if not TYPE_CHECKING:
    __getattr__ = moved_names(__name__)
