"""Models ready to look at photographs: by name or as they were made, of this package, on a device."""

from __future__ import annotations

import torch
from torch import nn

from ._devices import resolve_device
from .errors import InputError
from .factory import create_model
from .models import ImageTransformer
from .models._wrappers import unwrap


def ready_model(model: str | ImageTransformer, device: str | torch.device | None = None) -> ImageTransformer:
    """A model with weights by its name, in evaluation mode and for images of any size, or the one that is given.

    Args:
        model: A name that `create_model` loads with weights, or a model of this package, compiled or not.
        device: Where it goes; if None, a model that is given stays where it is, and a named one goes to the best device
            there is.

    Raises:
        InputError: If it is no model of this package, or there is no such device.
        UnknownNameError: If there is no such name.
        WeightsError: If it has no weights.
    """
    if isinstance(model, str):
        made = create_model(model, pretrained=True, dynamic_img_size=True).eval()
        return check_layers_known(made, model).to(resolve_device(device))
    if not (isinstance(model, nn.Module) and isinstance(unwrap(model), ImageTransformer)):
        raise InputError(f"a model is a name or a model of this package, not {model!r:.100}; create_model makes one")
    return model if device is None else model.to(resolve_device(device))


def check_layers_known(made: nn.Module, name: str) -> ImageTransformer:
    """The model that a name, or a file, makes; such a name may be registered for any module.

    Raises:
        InputError: If it is no model of this package.
    """
    if not isinstance(made, ImageTransformer):
        raise InputError(
            f"{name} makes a {type(made).__name__}, whose layers are not known; choose one of whitebox-crate list"
        )
    return made
