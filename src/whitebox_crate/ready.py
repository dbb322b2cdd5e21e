"""Models ready to look at photographs: by name or as they were made, of this package, on a device."""

from __future__ import annotations

import torch
from torch import nn

from ._devices import resolve_device
from .backbones import Readable, readable
from .errors import InputError
from .factory import create_model
from .models import ImageTransformer


def ready_model(model: str | nn.Module, device: str | torch.device | None = None) -> Readable:
    """A model with weights by its name, in evaluation mode and for images of any size, or the one that is given.

    Args:
        model: A name that `create_model` loads with weights, or a model that `capture` reads.
        device: Where it goes; if None, a model that is given stays where it is, and a named one goes to the best device
            there is.

    Raises:
        InputError: If nothing is known of the model, or there is no such device.
        UnknownNameError: If there is no such name.
        WeightsError: If it has no weights.
    """
    if isinstance(model, str):
        made = create_model(model, pretrained=True, dynamic_img_size=True).eval()
        return check_layers_known(made, model).to(resolve_device(device))
    known = readable(model)
    return known if device is None else known.to(resolve_device(device))


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
