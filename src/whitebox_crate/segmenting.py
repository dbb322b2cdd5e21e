"""segment: finds the masks of the objects in a photograph, in one call."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, Union, overload

import numpy as np
import torch
from torch import Tensor, nn

from .errors import InputError
from .images import image_files, load_image
from .preprocess import fit_photo, to_pillow
from .preprocess.pixels import AnyImage
from .ready import ready_model
from .segmentation.cuts import mask_boxes
from .segmentation.draw import CAPTION, blank_panel, data_url, draw_map, draw_objects, draw_panels, draw_scale
from .segmentation.edges import Edges, choose_edges
from .segmentation.methods import Masker, choose_method, method_with

if TYPE_CHECKING:
    from PIL.Image import Image

AnyPath: TypeAlias = Union[str, "os.PathLike[str]"]

SHORT_SIDE = 320  # of a picture in a panel, pixels
LEAST = 2  # pixels on a side; fewer show nothing


@dataclass(frozen=True, eq=False)
class Segmentation:
    """What `segment` found in a photograph. Tensors are on the CPU.

    Attributes:
        photo: The photograph, Pillow, upright, mode RGB.
        masks: bool (n, height, width): the objects, disjoint, each at the photograph's own size. n may be 0.
        scores: float32 (n,), in [0, 1]: how clearly the map separates each object from its surroundings
            (`segmentation.clearness`). They are not probabilities.
        map: float32 (rows, columns), on the patch grid: the map that the first mask was cut from.
        maps: float32 (maps, rows, columns): all maps behind the masks, for example the [CLS] maps of several heads.
        source: The file, if the photograph came from one.
    """

    photo: Image
    masks: Tensor
    scores: Tensor
    map: Tensor
    maps: Tensor
    source: Path | None = None

    @property
    def mask(self) -> Tensor:
        """bool (height, width): the pixels that belong to any object."""
        return self.masks.any(dim=0)

    @property
    def boxes(self) -> Tensor:
        """int64 (n, 4): x, y, width and height of each object, pixels."""
        return mask_boxes(self.masks)

    @property
    def score(self) -> float:
        """The score of the first object; 0 if there is none."""
        return float(self.scores[0]) if len(self.scores) else 0.0

    def overlay(self) -> Image:
        """The photograph at its own size, with the objects highlighted (`segmentation.draw.draw_objects`)."""
        return draw_objects(self.photo, self.masks)

    def panel(self) -> Image:
        """A sheet to look at: the photograph, the map on its patch grid with a scale, and the objects."""
        pictures, captions = zip(*self.pictures(), strict=True)
        return draw_panels(pictures, captions)

    def pictures(self) -> list[tuple[Image, str]]:
        """The pictures of `panel`: all of one size, each with a caption."""
        scale = SHORT_SIDE / min(self.photo.size)
        width, height = (max(1, round(min(side * scale, 4 * SHORT_SIDE))) for side in self.photo.size)
        small = self.photo.resize((width, height))
        rows, columns = self.map.shape
        map_ = draw_map(self.map, (height, width), mode="nearest")
        found = f"score {self.score:.2f}" if len(self.masks) == 1 else f"{len(self.masks)} objects"
        share = float(self.mask.float().mean())
        return [
            (_with_strip(small), f"{self.photo.width} x {self.photo.height} pixels"),
            (_with_strip(map_, draw_scale(self.map, width)), f"map, {columns} x {rows} patches"),
            (_with_strip(draw_objects(small, self.masks)), f"{found}, {share:.0%} of the picture"),
        ]

    def __repr__(self) -> str:
        """One line, without the tensors."""
        count = len(self.masks)
        said = [f"{self.photo.width} x {self.photo.height} pixels", f"{count} object{'' if count == 1 else 's'}"]
        said = [self.source.name, *said] if self.source else said
        return f"Segmentation({', '.join(said)}{f', score {self.score:.2f}' if count else ''})"

    def _repr_html_(self) -> str:
        """The panel, for notebooks."""
        alt = escape(f"{self.source.name if self.source else 'a photograph'}, its map and its objects")
        return f'<img alt="{alt}" src="{data_url(self.panel())}">'


@overload
def segment(
    images: Image | np.ndarray[Any, Any] | Tensor,
    model: str | nn.Module = ...,
    method: str | Masker | None = ...,
    *,
    size: int | None = ...,
    edges: str | Edges = ...,
    device: str | torch.device | None = ...,
    **settings: Any,
) -> Segmentation: ...


@overload
def segment(
    images: AnyPath,
    model: str | nn.Module = ...,
    method: str | Masker | None = ...,
    *,
    size: int | None = ...,
    edges: str | Edges = ...,
    device: str | torch.device | None = ...,
    **settings: Any,
) -> Any: ...


@overload
def segment(
    images: Iterable[AnyPath | AnyImage],
    model: str | nn.Module = ...,
    method: str | Masker | None = ...,
    *,
    size: int | None = ...,
    edges: str | Edges = ...,
    device: str | torch.device | None = ...,
    **settings: Any,
) -> Iterator[Segmentation]: ...


def segment(
    images: Any,
    model: str | nn.Module = "crate_nano",
    method: str | Masker | None = None,
    *,
    size: int | None = None,
    edges: str | Edges = "colours",
    device: str | torch.device | None = None,
    **settings: Any,
) -> Segmentation | Iterator[Segmentation]:
    """Finds objects in photographs with a network that was only taught to name them (arXiv 2308.16271).

    Args:
        images: One photograph: a file; a Pillow image; uint8 (height, width, 3) in numpy or (3, height, width) in
            torch. Or several: a list, a generator or a batch of these, or a folder (its photographs, sorted).
        model: Name of a model with weights (see `create_model`), or a model that `capture` reads.
        method: A name in `segmentation.METHODS`, or a function from features (tokens, dim) and grid (rows, columns) to
            masks, bool (n, rows, columns). If None, the first method that has the given settings.
        size: Shorter side of the image that the model sees, pixels; `best_short_side` of the model if None.
        edges: How masks go from patches to pixels: a name in `segmentation.EDGES`, or a function like those.
        device: Device to move the model to. If None, a given model stays where it is, and a named one runs on the best
            available device (CUDA, then MPS, then CPU).
        **settings: Settings of the method: layer and scales of "multiscale"; layer, head, rule and keep of "attention";
            n, layer, state and tau of "maskcut"; label of "class"; layer and state of a function.
            `segmentation.settings_of` lists them.

    Returns:
        The `Segmentation` of one photograph. For several, an iterator that segments each photograph on demand, so
        any number of them fits into memory. It can be read once: call `segment` again, or keep `list(...)` of a few
        photographs. A photograph that cannot be read raises its error in its turn; `next`
        then gives the one after it.

    Raises:
        InputError: If a photograph cannot be read, or an argument is not as above; the message names the file.
        UnknownNameError: If there is no such model, method, setting, layer, head or kind of edges.
        WeightsError: If there are no weights, or the model's states are not finite.
        MissingExtraError: If Pillow is not installed.

    Example:
        >>> found = segment("photo.jpg")  # a photograph of 420 x 280 pixels
        >>> found.mask.shape
        torch.Size([280, 420])
        >>> found.overlay().save("overlay.png")
        >>> for found in segment(["photo.jpg", "photo.jpg"], method="maskcut", n=2):
        ...     boxes = found.boxes.tolist()  # x, y, width, height of each object
    """
    settings = {name: value for name, value in settings.items() if value is not None}
    find = choose_method(method_with(settings) if method is None else method, **settings)
    to_pixels, network = choose_edges(edges), ready_model(model, device)

    def one(image: AnyPath | AnyImage) -> Segmentation:
        source = Path(image) if isinstance(image, str | os.PathLike) else None
        photo = to_pillow(image) if source is None else load_image(source)
        try:
            if min(photo.size) < LEAST:
                raise InputError(
                    f"the photograph has {photo.width} x {photo.height} pixels; give at least {LEAST} x {LEAST}"
                )
            pixels = fit_photo(network, photo, size).pixels
            with torch.inference_mode(), _memory(pixels):
                found = find(network, pixels)
        except InputError as error:
            raise InputError(f"{source}: {error}" if source else str(error)) from error
        levels, scores, map_, maps = (of.cpu() for of in found)
        masks = to_pixels(levels, torch.from_numpy(np.array(photo)).permute(2, 0, 1))
        there = masks.flatten(1).any(1)  # the outline of a larger object may cover a small object
        return Segmentation(photo, masks[there], scores[there], map_, maps, source)

    several = _several(images)
    return one(images) if several is None else map(one, several)


@contextmanager
def _memory(pixels: Tensor) -> Iterator[None]:
    """Turns a lack of memory into an InputError that names the next step."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        height, width = pixels.shape[-2:]
        raise InputError(f"{height} x {width} pixels need more memory than is free; give a smaller size") from error


def _several(images: Any) -> Iterable[AnyPath | AnyImage] | None:
    """The photographs, or None for a single one."""
    if isinstance(images, str | os.PathLike):
        return image_files(images) if os.path.isdir(images) else None
    if isinstance(images, np.ndarray | Tensor):
        return images if images.ndim == 4 else None
    is_one = isinstance(images, bytes) or hasattr(images, "read")  # a list of numbers or lines to Python
    return images if isinstance(images, Iterable) and not is_one else None


def _with_strip(picture: Image, strip: Image | None = None) -> Image:
    """A picture with a strip below it (empty if None), so that all panels have one size."""
    sheet = blank_panel(picture.width, picture.height + CAPTION)
    sheet.paste(picture, (0, 0))
    if strip is not None:
        sheet.paste(strip, (0, picture.height))
    return sheet
