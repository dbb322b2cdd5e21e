"""Pictures of maps, masks and components: panels with captions, side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError, require
from .attention import upsample

if TYPE_CHECKING:
    from PIL.Image import Image

GAP, CAPTION = 8, 26  # pixels between panels and above each
PAPER, INK = (255, 255, 255), (30, 30, 30)
MASK_TINT = np.array([255, 64, 32], dtype=np.float32)
# Black to white through purple and orange, so that more is always lighter, in print too.
HEAT = np.array([[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]], dtype=np.float32)


def draw_map(attention: Tensor, size: tuple[int, int]) -> Image:
    """A map in colours from black (its least value) to pale yellow (its largest).

    Args:
        attention: (grid_h, grid_w), float.
        size: (height, width) of the picture, pixels.

    Returns:
        A Pillow image in mode RGB.

    Raises:
        InputError: If the map is not two-dimensional.
    """
    if attention.ndim != 2:
        raise InputError(f"expected one map (grid_h, grid_w), got {tuple(attention.shape)}")
    values = attention.detach().float()
    values = (values - values.min()) / (values.max() - values.min()).clamp_min(1e-12)
    fine = upsample(values, size, mode="bilinear").clamp(0, 1).cpu().numpy()
    anchors = np.linspace(0, 1, len(HEAT))
    return _image(np.stack([np.interp(fine, anchors, HEAT[:, c]) for c in range(3)], axis=-1))


def draw_mask(photo: Image, mask: Tensor) -> Image:
    """A photograph with everything outside the mask dimmed, and the mask's edge drawn.

    Args:
        photo: A Pillow image in mode RGB.
        mask: bool (grid_h, grid_w).

    Returns:
        A Pillow image in mode RGB, of the same size.

    Raises:
        InputError: If the mask is not two-dimensional.
    """
    if mask.ndim != 2:
        raise InputError(f"expected one mask (grid_h, grid_w), got {tuple(mask.shape)}")
    inside = upsample(mask.cpu(), (photo.height, photo.width))
    width = max(1, min(photo.size) // 150)
    padded = torch.nn.functional.pad(inside[None, None].float(), [width] * 4, mode="replicate")
    pooled = torch.nn.functional.max_pool2d(-padded, 2 * width + 1, stride=1)
    edge = (inside & (pooled[0, 0] > -1)).numpy()[..., None]
    pixels = np.asarray(photo, dtype=np.float32)
    dimmed = pixels * 0.25 + 40
    shown = np.where(inside.numpy()[..., None], pixels, dimmed)
    return _image(np.where(edge, MASK_TINT, shown))


def draw_colours(rgb: Tensor, size: tuple[int, int], inside: Tensor | None = None) -> Image:
    """Colours of patches, each patch whole.

    Args:
        rgb: (3, grid_h, grid_w), or (1, grid_h, grid_w) for grey; float, in [0, 1].
        size: (height, width) of the picture, pixels.
        inside: bool (grid_h, grid_w): what is outside stays paper.

    Returns:
        A Pillow image in mode RGB.
    """
    pixels = rgb.cpu().expand(3, -1, -1) * 255
    if inside is not None:
        pixels = torch.where(inside.cpu(), pixels, torch.tensor(PAPER, dtype=torch.float32)[:, None, None])
    return _image(upsample(pixels, size).permute(1, 2, 0).numpy())


def frame_panels(panels: Sequence[Image]) -> list[Image]:
    """Pictures of any sizes, each in the middle of a paper; papers are of one size."""
    width, height = max(panel.width for panel in panels), max(panel.height for panel in panels)
    framed = []
    for panel in panels:
        paper = blank_panel(width, height)
        paper.paste(panel, ((width - panel.width) // 2, (height - panel.height) // 2))
        framed.append(paper)
    return framed


def blank_panel(width: int, height: int) -> Image:
    """Paper, sides in pixels."""
    pillow: Any = require("PIL.Image", extra="images")
    paper: Image = pillow.new("RGB", (width, height), PAPER)
    return paper


def draw_panels(panels: Sequence[Image], captions: Sequence[str], columns: int | None = None) -> Image:
    """Lays pictures of one size out in rows, each under its caption.

    Args:
        panels: Pillow images, all of the size of the first.
        captions: One line each.
        columns: Panels per row; all in one row if None.

    Returns:
        A Pillow image in mode RGB.

    Raises:
        InputError: If there are no panels, or not one caption each.
    """
    if not panels or len(panels) != len(captions):
        raise InputError(f"expected one caption per panel, got {len(panels)} panels, {len(captions)} captions")
    draw: Any = require("PIL.ImageDraw", extra="images")
    font: Any = require("PIL.ImageFont", extra="images").load_default(size=15)
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


def _image(pixels: np.ndarray[Any, Any]) -> Image:
    pillow: Any = require("PIL.Image", extra="images")
    image: Image = pillow.fromarray(pixels.round().astype(np.uint8))
    return image
