"""Edges: named ways to turn levels of objects on the patch grid into masks at the pixels of a photograph.

`EDGES` is the table of edges, as `METHODS` is the table of methods.
If masks change here, `REVISION` of the methods grows by one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError, UnknownNameError
from .attention import upsample
from .guided import add_colours, guided_filter
from .pieces import large_pieces

# Chosen on photographs; recipes/measure_masks.py measures them.
SIDE = 144  # shorter side of the photograph on which the filter is computed, pixels
DETAIL = 720  # largest shorter side, pixels, of the photograph whose edges are followed, to save memory
RADIUS = 1 / 12  # radius of the filter's windows, as a share of SIDE
PINHOLE = 1 / 50  # a piece of the background smaller than this share of its largest is filled
STEEPNESS = 2.0  # logits of being inside an object, per standard deviation of its levels

# Called with levels (n, rows, columns), as in `Segments`, and the photograph, uint8 (3, height, width); returns
# disjoint masks, bool (n, height, width).
Edges: TypeAlias = Callable[[Tensor, Tensor], Tensor]


def patch_edges(levels: Tensor, photo: Tensor) -> Tensor:
    """Whole patches: the model's masks, with steps at their edges."""
    return _masks(levels, photo, lambda level, size: upsample(level, size))


def smooth_edges(levels: Tensor, photo: Tensor) -> Tensor:
    """Blends levels between the centres of patches, so that outlines run smoothly where the levels cross 0.

    An object that would vanish keeps its patches.
    """
    return _masks(levels, photo, lambda level, size: _or_patches(upsample(level, size, mode="bilinear"), level))


def guided_edges(levels: Tensor, photo: Tensor) -> Tensor:
    """Makes outlines follow the edges of the photograph, by a guided filter of the blended levels.

    The filter is computed on a small photograph and read at all pixels. Of each object alone, pieces smaller than a
    quarter of its largest are left out, and small pieces of the background are filled. Where objects overlap, they are
    cut against each other after that. An object that would vanish keeps its patches.
    """
    return _follow(levels, photo, lambda small, fine: fine)


def colour_edges(levels: Tensor, photo: Tensor) -> Tensor:
    """`guided_edges`, after adding pixels in the colours of the object and removing others.

    Colours decide together with the levels (`add_colours`). So an object may gain or lose parts that the model did not
    show. That knowledge comes from the photograph, not from the model.
    """
    return _follow(levels, photo, lambda small, fine: add_colours(small, STEEPNESS * fine).sigmoid() - 0.5)


EDGES: dict[str, Edges] = {
    "colours": colour_edges,
    "guided": guided_edges,
    "smooth": smooth_edges,
    "patches": patch_edges,
}


def choose_edges(edges: str | Edges) -> Edges:
    """The function of this name in `EDGES`, or the given function.

    Raises:
        UnknownNameError: If there is no such name; the message lists close matches.
        InputError: If it is neither a name nor a function.
    """
    if isinstance(edges, str):
        if edges not in EDGES:
            raise UnknownNameError.of("kind of edges", edges, EDGES)
        return EDGES[edges]
    if not callable(edges):
        raise InputError(f"edges must be a name or a function from levels and photograph to masks, not {edges!r}")
    return edges


def _follow(levels: Tensor, photo: Tensor, prepared: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Masks by the guided filter. `prepared` gets the small photograph and the levels blended to its size."""
    guide, small, radius = _guides(photo, levels.device)

    def filtered(level: Tensor, size: tuple[int, int]) -> Tensor:
        values = prepared(small, upsample(level, (small.shape[1], small.shape[2]), mode="bilinear"))
        fine = _without_crumbs(guided_filter(small, values, radius, at=guide))
        return _or_patches(upsample(fine, size, mode="bilinear"), level)

    return _masks(levels, photo, filtered)


def _or_patches(fine: Tensor, level: Tensor) -> Tensor:
    """The levels at pixels, or at patches if the object would vanish."""
    return fine if (fine > 0).any() else upsample(level, (fine.shape[0], fine.shape[1]))


def _without_crumbs(values: Tensor) -> Tensor:
    """The values with signs such that what is above 0 has no small piece and what is below has none."""
    kept = large_pieces(values > 0)
    filled = ~large_pieces(~kept, PINHOLE)
    return torch.where(filled, values.abs(), -values.abs())


def _guides(photo: Tensor, device: torch.device) -> tuple[Tensor, Tensor, int]:
    """The photograph in [0, 1] with at most `DETAIL` and `SIDE` pixels, and the filter's radius on the small one."""
    guide = _shrunk(photo.to(device).float() / 255, DETAIL)
    small = _shrunk(guide, SIDE)
    return guide, small, max(1, round(min(small.shape[1:]) * RADIUS))


def _shrunk(photo: Tensor, side: int) -> Tensor:
    """The photograph with a shorter side of at most `side` pixels."""
    scale = min(1.0, side / min(photo.shape[1:]))
    size = [max(1, round(length * scale)) for length in photo.shape[1:]]
    return photo if scale == 1 else F.interpolate(photo[None], size, mode="bilinear", antialias=True)[0]


def _masks(levels: Tensor, photo: Tensor, enlarge: Callable[[Tensor, tuple[int, int]], Tensor]) -> Tensor:
    """Gives each pixel to the object of the highest level above 0, one map at a time to save memory."""
    size = (photo.shape[-2], photo.shape[-1])
    masks = torch.zeros(len(levels), *size, dtype=torch.bool, device=levels.device)
    highest = torch.zeros(size, device=levels.device)
    for number, level in enumerate(levels):
        fine = enlarge(level, size)
        masks[number] = fine > highest
        masks[:number] &= ~masks[number]
        highest = torch.maximum(highest, fine)
    return masks
