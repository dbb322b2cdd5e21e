"""Turns images into tensors, with the resize, crop and normalisation that a set of weights was evaluated with."""

from typing import TYPE_CHECKING

from .._deprecated import moved_names
from .photographs import (
    MOST_PATCHES,
    SeenPhoto,
    best_short_side,
    check_takes_photos,
    fit_photo,
    grid_for,
    resize_to_grid,
)
from .pixels import MOST_PIXELS, AnyImage, image_to_tensor, to_pillow
from .transform import INTERPOLATIONS, Transform, create_transform, resolve_data_config

__all__ = [
    "INTERPOLATIONS",
    "MOST_PATCHES",
    "MOST_PIXELS",
    "AnyImage",
    "SeenPhoto",
    "Transform",
    "best_short_side",
    "check_takes_photos",
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
