"""view: makes a page of photographs and models."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..errors import InputError
from ..images import image_files, load_image
from ..models import ImageTransformer
from ..models._wrappers import transformer_in
from ..preprocess import to_pillow
from ..preprocess.pixels import AnyImage
from ..ready import ready_model
from ..segmentation.draw import data_url
from .packing import pack_readings
from .pages import Page, assemble
from .readings import read

if TYPE_CHECKING:
    from PIL.Image import Image

LONG_SIDE = 960  # longer side of a photograph on the page, pixels
MEGABYTES = 5.0


def view(
    images: str | os.PathLike[str] | AnyImage | Sequence[str | os.PathLike[str] | AnyImage],
    models: str | ImageTransformer | Sequence[str | ImageTransformer] = "crate_nano",
    *,
    size: int | None = None,
    megabytes: float = MEGABYTES,
    device: str | torch.device | None = None,
) -> Page:
    """An interactive page: the attention of models in photographs, patch by patch, in one file that works offline.

    A click on a patch shows its attention, in each layer and head. A mask is cut from the shown map, by the rules of
    `attention_masks`. Colours are principal components of the tokens. Coding rate and sparsity are listed too.

    Args:
        images: One photograph: a file; a Pillow image; uint8 (height, width, 3) in numpy or (3, height, width) in
            torch. Or a list of these, or a folder of photographs.
        models: A name that `create_model` loads with weights, or a model of this package that takes images of any size
            (`dynamic_img_size=True`), or several, which are shown side by side.
        size: Shorter side of the image that each model sees, pixels; `best_short_side` of the model if None.
        megabytes: Size of the page, for each photograph. Layers whose attention of patches does not fit are left out,
            and the page says so.
        device: Device to move the models to. If None, a given model stays where it is, and a named one runs on the best
            available device (CUDA, then MPS, then CPU).

    Returns:
        The page. A notebook shows it, and `save` writes it.

    Raises:
        InputError: If a photograph cannot be read, there is none, a model is folded or does not take photographs, or
            `megabytes` is not positive.
        UnknownNameError: If there is no such model.
        WeightsError: If a model has no weights.
        MissingExtraError: If Pillow is not installed.

    Example:
        >>> page = view("photo.jpg", ["crate_nano", "vit_nano"])
        >>> path = page.save("page.html")
    """
    photos = [_photo(image, index) for index, image in enumerate(_several(images))]
    return view_photographs(photos, [_model(model, device) for model in _several(models)], size, megabytes)


def view_photographs(
    photos: Sequence[tuple[str, Image]],
    models: Sequence[tuple[str, ImageTransformer]],
    size: int | None = None,
    megabytes: float = MEGABYTES,
) -> Page:
    """`view` for named photographs and named models.

    Example:
        >>> from whitebox_crate.images import load_image
        >>> model = create_model("crate_nano", pretrained=True).eval()
        >>> path = view_photographs([("cup", load_image("photo.jpg"))], [("mine", model)], size=48).save("page.html")
    """
    if not photos or not models:
        raise InputError(f"give at least one photograph and one model, not {len(photos)} and {len(models)}")
    if not 0 < megabytes < math.inf:
        raise InputError(f"megabytes must be finite and more than 0, not {megabytes!r}")
    room = round(megabytes * 1e6) - len(assemble({}).html)
    shown = []
    for name, photo in photos:
        picture = _picture(photo)
        readings = [read(model, called, photo, size) for called, model in models]
        packed = pack_readings(readings, room - len(picture["data"]))
        shown.append({"name": name, "picture": picture, "readings": packed})
    return assemble({"photographs": shown})


def _several(value: Any) -> list[Any]:
    if isinstance(value, str | os.PathLike) and os.path.isdir(value):
        return list(image_files(value))
    return list(value) if isinstance(value, list | tuple) else [value]


def _photo(image: str | os.PathLike[str] | AnyImage, index: int) -> tuple[str, Image]:
    if isinstance(image, str | os.PathLike):
        return os.path.basename(image), load_image(image)
    return f"photograph {index + 1}", to_pillow(image)


def _model(model: str | ImageTransformer, device: str | torch.device | None) -> tuple[str, ImageTransformer]:
    ready = transformer_in(ready_model(model, device))
    return model if isinstance(model, str) else ready.architecture or type(ready).__name__, ready


def _picture(photo: Image) -> dict[str, Any]:
    """The photograph as a JPEG in a data URL, no larger than shown on the page."""
    small = photo.copy()
    small.thumbnail((LONG_SIDE, LONG_SIDE))
    return {"data": data_url(small, "JPEG", quality=85), "width": small.width, "height": small.height}
