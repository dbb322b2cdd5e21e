"""view: photographs and models in, a page out."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, Union

from ..errors import InputError
from ..factory import create_model
from ..images import load_image, to_rgb
from ..models import ImageTransformer
from .packing import pack_readings
from .pages import Page, assemble
from .readings import read

if TYPE_CHECKING:
    from PIL.Image import Image

Photo: TypeAlias = Union[str, "os.PathLike[str]", "Image"]

LONG_SIDE = 960  # of a photograph on the page, pixels
MEGABYTES = 5.0


def view(
    photos: Photo | Sequence[Photo],
    models: str | ImageTransformer | Sequence[str | ImageTransformer] = "crate_nano",
    *,
    short_side: int | None = None,
    megabytes: float = MEGABYTES,
) -> Page:
    """A page to play with: what models attend to in photographs, patch by patch, in one file that needs no network.

    A click on a patch shows what it attends to, in each layer and head; a mask is cut from the map that is shown, by
    the rules of `attention_masks`; colours are principal components of the tokens; coding rate and sparsity stand
    beside.

    Args:
        photos: A path or a Pillow image, or several.
        models: A name that `create_model` loads with weights, or a model of this package that takes images of any
            size (`dynamic_img_size=True`), or several: they are shown side by side.
        short_side: Of what each model sees, pixels; if None, `best_short_side` of the model.
        megabytes: Of the page, for each photograph. What patches attend to in layers that do not fit is left out, and
            the page says so.

    Returns:
        The page, which a notebook shows, and which `save` writes.

    Raises:
        InputError: If a photograph cannot be read, there is none, a model is folded or takes no photographs, or
            `megabytes` is not positive.
        UnknownNameError: If there is no such model.
        WeightsError: If it has no weights.
    """
    named = [_named(photo, index) for index, photo in enumerate(_several(photos))]
    return view_photographs(named, [_model(one) for one in _several(models)], short_side, megabytes)


def view_photographs(
    photos: Sequence[tuple[str, Image]],
    models: Sequence[tuple[str, ImageTransformer]],
    short_side: int | None = None,
    megabytes: float = MEGABYTES,
) -> Page:
    """`view` of photographs and models that are there and have names."""
    if not photos or not models:
        raise InputError(f"give at least one photograph and one model, not {len(photos)} and {len(models)}")
    if not megabytes > 0:
        raise InputError(f"megabytes is the size of the page, more than 0, not {megabytes!r}")
    room = round(megabytes * 1e6) - len(assemble({}).html)
    shown = []
    for name, photo in photos:
        picture = _picture(photo)
        readings = [read(model, called, photo, short_side) for called, model in models]
        packed = pack_readings(readings, room - len(picture["data"]))
        shown.append({"name": name, "picture": picture, "readings": packed})
    return assemble({"photographs": shown})


def _several(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _named(photo: Photo, index: int) -> tuple[str, Image]:
    if isinstance(photo, str | os.PathLike):
        return os.path.basename(photo), load_image(photo)
    return f"photograph {index + 1}", to_rgb(photo)


def _model(model: str | ImageTransformer) -> tuple[str, ImageTransformer]:
    if isinstance(model, str):
        made = create_model(model, pretrained=True, dynamic_img_size=True)
        if not isinstance(made, ImageTransformer):
            raise InputError(f"{model} makes a {type(made).__name__}, whose layers are not known")
        return model, made.eval()
    if not isinstance(model, ImageTransformer):
        raise InputError(f"a model is a name or a model of this package, not a {type(model).__name__}")
    return model.architecture or type(model).__name__, model


def _picture(photo: Image) -> dict[str, Any]:
    """The photograph as a JPEG in a data URL, not larger than a page shows it."""
    small = photo.copy()
    small.thumbnail((LONG_SIDE, LONG_SIDE))
    file = io.BytesIO()
    small.save(file, format="JPEG", quality=85)
    data = base64.b64encode(file.getvalue()).decode("ascii")
    return {"data": f"data:image/jpeg;base64,{data}", "width": small.width, "height": small.height}
