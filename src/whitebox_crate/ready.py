"""Models ready to look at photographs: by name or as objects, from this package or from timm, on a device."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import torch
from torch import nn

from ._devices import resolve_device
from ._patience import told
from .backbones import Readable, readable
from .errors import InputError, UnknownNameError, WeightsError, require
from .factory import create_model
from .models import ImageTransformer

TIMM = "timm:"  # before the name of a model that timm makes


def ready_model(model: str | nn.Module, device: str | torch.device | None = None) -> Readable:
    """A model that is ready to use: a given model as it is; a named one with weights, in evaluation mode, for any size.

    Args:
        model: A name (see `named_model`), or a model that `capture` reads.
        device: Device to move it to. If None, a given model stays where it is, and a named one goes to the best
            available device.

    Raises:
        InputError: If no adapter knows the model, or there is no such device.
        UnknownNameError: If there is no such name.
        WeightsError: If the name has no weights.
        MissingExtraError: If the name is timm's and timm is not installed.
    """
    if isinstance(model, str):
        return named_model(model).eval().to(resolve_device(device))
    known = readable(model)
    return known if device is None else known.to(resolve_device(device))


def named_model(name: str, checkpoint: Path | None = None, any_size: bool = True) -> Readable:
    """A model with weights by its name.

    Args:
        name: A name that `create_model` loads with weights; or "timm:" and a name of timm.
        checkpoint: A file of weights in place of the model's own.
        any_size: Whether the model takes images of any size, or only of the size that it was made for.

    Raises:
        InputError: If no adapter knows the model that the name makes.
        UnknownNameError: If there is no such name.
        WeightsError: If the name has no weights.
        MissingExtraError: If the name is timm's and timm is not installed.
    """
    if name.startswith(TIMM):
        return readable(_of_timm(name.removeprefix(TIMM), checkpoint, any_size))
    return readable(
        create_model(name, pretrained=checkpoint is None, checkpoint_path=checkpoint, dynamic_img_size=any_size or None)
    )


def _of_timm(name: str, checkpoint: Path | None, any_size: bool) -> nn.Module:
    timm = require("timm", extra="timm")
    if ":" not in name:  # names with a colon are places, such as hf-hub:
        if not timm.is_model(name.partition(".")[0]):
            raise UnknownNameError.of("model of timm", name, timm.list_models())
        if checkpoint is None and not timm.is_model_pretrained(name):
            raise WeightsError(f"timm has no weights for {name}; give --checkpoint, or a model object that timm made")
    options = {"dynamic_img_size": True} if any_size else {}
    try:
        with told(f"timm's {name}") if checkpoint is None else nullcontext():
            made: nn.Module = timm.create_model(
                name, pretrained=checkpoint is None, checkpoint_path=str(checkpoint or ""), **options
            )
    except TypeError as error:  # models other than vision transformers lack this option
        raise InputError(
            f"timm's {name} is not a vision transformer that takes images of any size ({error}); choose another, for "
            "example vit_small_patch16_224"
        ) from error
    except (OSError, RuntimeError) as error:
        raise WeightsError(
            f"timm cannot load the weights of {name}; --checkpoint takes a file of them. It said: {error}"
        ) from error
    return made


def check_layers_known(made: nn.Module, name: str) -> ImageTransformer:
    """Checks a model that a name or a file made: a name may be registered for any module.

    Raises:
        InputError: If it is not a model of this package.
    """
    if not isinstance(made, ImageTransformer):
        raise InputError(
            f"{name} makes a {type(made).__name__}, whose layers are unknown; choose a model of whitebox-crate list"
        )
    return made
