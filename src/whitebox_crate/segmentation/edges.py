"""Edges: the named ways from the levels of objects on the patch grid to their masks at the pixels of a photograph.

`EDGES` is the one table of them, as `METHODS` is of methods.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from ..errors import UnknownNameError
from .attention import upsample

# Called with levels (n, rows, columns), as `Segments` has them, and the photograph, uint8 (3, height, width); gives
# disjoint masks, bool (n, height, width).
Edges: TypeAlias = Callable[[Tensor, Tensor], Tensor]


def patch_edges(levels: Tensor, photo: Tensor) -> Tensor:
    """Each patch whole: steps, and nothing but what the model said."""
    return _masks(levels, photo, lambda level, size: upsample(level, size))


def smooth_edges(levels: Tensor, photo: Tensor) -> Tensor:
    """Levels are blended between the centres of patches, so that outlines run smoothly where the levels cross 0.

    An object of which nothing would be left keeps its patches.
    """

    def blended(level: Tensor, size: tuple[int, int]) -> Tensor:
        fine = upsample(level, size, mode="bilinear")
        return fine if (fine > 0).any() else upsample(level, size)

    return _masks(levels, photo, blended)


EDGES: dict[str, Edges] = {"smooth": smooth_edges, "patches": patch_edges}


def choose_edges(edges: str | Edges) -> Edges:
    """The function of that name in `EDGES`, or the one that is given.

    Raises:
        UnknownNameError: If there is no such name; the message lists close matches.
    """
    if isinstance(edges, str):
        if edges not in EDGES:
            raise UnknownNameError.of("kind of edges", edges, EDGES)
        return EDGES[edges]
    return edges


def _masks(levels: Tensor, photo: Tensor, enlarge: Callable[[Tensor, tuple[int, int]], Tensor]) -> Tensor:
    """Each pixel belongs to the object of the highest level above 0; one map at a time, for photographs are large."""
    size = (photo.shape[-2], photo.shape[-1])
    masks = torch.zeros(len(levels), *size, dtype=torch.bool, device=levels.device)
    highest = torch.zeros(size, device=levels.device)
    for number, level in enumerate(levels):
        fine = enlarge(level, size)
        masks[number] = fine > highest
        masks[:number] &= ~masks[number]
        highest = torch.maximum(highest, fine)
    return masks
