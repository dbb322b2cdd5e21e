"""Draws maps, masks and components as panels with captions, side by side."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError, require
from .attention import UpsampleMode, upsample

if TYPE_CHECKING:
    from PIL.Image import Image

GAP, CAPTION = 8, 26  # pixels between panels and above each
PAPER, INK = (255, 255, 255), (30, 30, 30)
DAY, NIGHT = (212, 224, 244), (14, 18, 34)  # bluish: the surroundings of objects fade into one of these
FADED, TINT = 0.75, 0.3  # how much they fade, and how much of its colour each of several objects gets
# Colours of the objects' edges, in order; the colour-blind can tell them apart (Okabe and Ito 2008).
COLOURS = ((255, 64, 32), (86, 180, 233), (240, 228, 66), (0, 158, 115), (204, 121, 167), (0, 114, 178))
# Black to white through purple and orange, so that more is always lighter, in print too.
HEAT = np.array([[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]], dtype=np.float32)


def draw_map(attention: Tensor, size: tuple[int, int], mode: UpsampleMode = "bilinear") -> Image:
    """Draws a map in colours from black (its smallest value) to pale yellow (its largest).

    Args:
        attention: (grid_h, grid_w), float.
        size: (height, width) of the picture, pixels.
        mode: "bilinear", or "nearest" for whole patches.

    Returns:
        A Pillow image in mode RGB.

    Raises:
        InputError: If the map is not two-dimensional.

    Example:
        >>> draw_map(torch.rand(16, 24), size=(280, 420)).size
        (420, 280)
    """
    if attention.ndim != 2:
        raise InputError(f"expected one map (grid_h, grid_w), got {tuple(attention.shape)}")
    values = attention.detach().float()
    values = (values - values.min()) / (values.max() - values.min()).clamp_min(1e-12)
    return _heat(upsample(values, size, mode=mode).clamp(0, 1).cpu().numpy())


def draw_scale(attention: Tensor, width: int) -> Image:
    """Draws the scale of `draw_map`: a bar between the map's smallest and largest value.

    Args:
        attention: (grid_h, grid_w), float.
        width: Width of the picture, pixels.

    Returns:
        A Pillow image in mode RGB, `CAPTION` pixels high.
    """
    strip, font = blank_panel(width, CAPTION), _font()
    pen = require("PIL.ImageDraw", extra="images").Draw(strip)
    least, largest = f"{float(attention.min()):.2g}", f"{float(attention.max()):.2g}"
    left, right = (round(pen.textlength(text, font=font)) + GAP for text in (least, largest))
    pen.text((0, CAPTION // 2), least, fill=INK, font=font, anchor="lm")
    pen.text((width, CAPTION // 2), largest, fill=INK, font=font, anchor="rm")
    shades = np.linspace(0, 1, max(1, width - left - right))
    strip.paste(_heat(np.tile(shades, (CAPTION // 2, 1))), (left, CAPTION // 4))
    return strip


def draw_mask(photo: Image, mask: Tensor) -> Image:
    """Draws a photograph with everything outside the mask faded, and with the mask's edge. See `draw_objects`.

    Args:
        photo: A Pillow image in mode RGB.
        mask: bool (rows, columns), of the patch grid or as large as the photograph.

    Returns:
        A Pillow image in mode RGB, of the same size.

    Raises:
        InputError: If the mask is not two-dimensional.
    """
    if mask.ndim != 2:
        raise InputError(f"expected one mask (rows, columns), got {tuple(mask.shape)}")
    return draw_objects(photo, mask[None])


def draw_objects(photo: Image, masks: Tensor) -> Image:
    """Draws a photograph with highlighted objects: the rest is grey and faded, each object has an edge in its colour.

    The rest becomes nearly black around bright objects, and nearly white around dark ones. Several objects are also
    tinted.

    Args:
        photo: A Pillow image in mode RGB.
        masks: bool (n, rows, columns), of the patch grid or as large as the photograph.

    Returns:
        A Pillow image in mode RGB, of the same size.

    Raises:
        InputError: If the masks are not three-dimensional.
    """
    if masks.ndim != 3:
        raise InputError(f"expected masks (n, rows, columns), got {tuple(masks.shape)}")
    pillow: Any = require("PIL.Image", extra="images")
    chops: Any = require("PIL.ImageChops", extra="images")
    blur: Any = require("PIL.ImageFilter", extra="images").BoxBlur(max(1, min(photo.size) // 150))
    grey, whole = photo.convert("L"), _stencil(masks.any(0), photo)
    bright = require("PIL.ImageStat", extra="images").Stat(grey, whole).mean[0] > 127
    paper = pillow.new("RGB", photo.size, NIGHT if bright else DAY)
    shown = pillow.composite(photo, pillow.blend(grey.convert("RGB"), paper, FADED), whole)
    for index, mask in enumerate(masks):
        stencil, colour = _stencil(mask, photo), COLOURS[index % len(COLOURS)]
        if len(masks) > 1:
            tinted = pillow.blend(shown, pillow.new("RGB", photo.size, colour), TINT)
            shown = pillow.composite(tinted, shown, stencil)
        inner = stencil.filter(blur).point(lambda value: 255 * (value == 255))
        shown.paste(colour, mask=chops.subtract(stencil, inner))
    image: Image = shown
    return image


def draw_colours(rgb: Tensor, size: tuple[int, int], inside: Tensor | None = None) -> Image:
    """Draws one colour for each whole patch.

    Args:
        rgb: (3, grid_h, grid_w), or (1, grid_h, grid_w) for grey; float, in [0, 1].
        size: (height, width) of the picture, pixels.
        inside: bool (grid_h, grid_w): patches outside are blank.

    Returns:
        A Pillow image in mode RGB.
    """
    pixels = rgb.cpu().expand(3, -1, -1) * 255
    if inside is not None:
        pixels = torch.where(inside.cpu(), pixels, torch.tensor(PAPER, dtype=torch.float32)[:, None, None])
    return _image(upsample(pixels, size).permute(1, 2, 0).numpy())


def frame_panels(panels: Sequence[Image]) -> list[Image]:
    """Puts each picture, of any size, in the middle of a blank panel. All panels have one size."""
    width, height = max(panel.width for panel in panels), max(panel.height for panel in panels)
    framed = []
    for panel in panels:
        paper = blank_panel(width, height)
        paper.paste(panel, ((width - panel.width) // 2, (height - panel.height) // 2))
        framed.append(paper)
    return framed


def blank_panel(width: int, height: int) -> Image:
    """A blank panel; sides in pixels."""
    pillow: Any = require("PIL.Image", extra="images")
    paper: Image = pillow.new("RGB", (width, height), PAPER)
    return paper


def draw_panels(panels: Sequence[Image], captions: Sequence[str], columns: int | None = None) -> Image:
    """Lays pictures of one size out in rows, each under its caption.

    Args:
        panels: Pillow images, all of one size.
        captions: One line each.
        columns: Panels per row; all in one row if None.

    Returns:
        A Pillow image in mode RGB.

    Raises:
        InputError: If there are no panels, or not one caption per panel.
    """
    if not panels or len(panels) != len(captions):
        raise InputError(f"expected one caption per panel, got {len(panels)} panels, {len(captions)} captions")
    draw: Any = require("PIL.ImageDraw", extra="images")
    font = _font()
    columns = columns or len(panels)
    rows = math.ceil(len(panels) / columns)
    width, height = panels[0].width + GAP, panels[0].height + CAPTION + GAP
    sheet = blank_panel(columns * width + GAP, rows * height)
    pen = draw.Draw(sheet)
    for index, (panel, caption) in enumerate(zip(panels, captions, strict=True)):
        left, top = GAP + index % columns * width, index // columns * height
        sheet.paste(panel, (left, top + CAPTION))
        while len(caption) > 1 and pen.textlength(caption, font=font) > panel.width:
            caption = caption[:-2] + "…"
        pen.text((left, top + CAPTION // 2), caption, fill=INK, font=font, anchor="lm")
    return sheet


def data_url(picture: Image, kind: str = "PNG", **options: Any) -> str:
    """A picture as a data URL, which a page can hold in place of a file.

    Args:
        picture: A Pillow image.
        kind: One of Pillow's formats that browsers show.
        **options: Options of Pillow's writer, such as quality.
    """
    file = io.BytesIO()
    picture.save(file, format=kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode('ascii')}"


def _font() -> Any:
    return require("PIL.ImageFont", extra="images").load_default(size=15)


def _heat(values: np.ndarray[Any, Any]) -> Image:
    """Numbers in [0, 1], (height, width), as colours."""
    anchors = np.linspace(0, 1, len(HEAT))
    return _image(np.stack([np.interp(values, anchors, HEAT[:, c]) for c in range(3)], axis=-1))


def _stencil(mask: Tensor, photo: Image) -> Image:
    """A mask as a Pillow image of mode L, 0 and 255, as large as the photograph."""
    pillow: Any = require("PIL.Image", extra="images")
    inside = upsample(mask.cpu(), (photo.height, photo.width))
    stencil: Image = pillow.fromarray(inside.numpy().astype(np.uint8) * 255)
    return stencil


def _image(pixels: np.ndarray[Any, Any]) -> Image:
    pillow: Any = require("PIL.Image", extra="images")
    image: Image = pillow.fromarray(pixels.round().astype(np.uint8))
    return image
