"""PCA of patch features over images of one class. One basis for all, so a colour means the same in every image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from .._deprecated import moved_names
from ..errors import InputError, is_whole
from .otsu import otsu_cut
from .states import Grid

Features: TypeAlias = Tensor | Sequence[Tensor]

NOTHING = 1e-6  # a spread below this share of the whole is rounding


@dataclass(frozen=True)
class PatchPCA:
    """The PCA of a set of images; (rows, columns) is the grid of each image.

    Attributes:
        first: The first component of all patches, float32 (rows, columns) for each image, 0 to 1 over the set; larger
            in the foreground.
        foreground: bool (rows, columns) for each image.
        rgb: Three components of the foreground, float32 (3, rows, columns) for each image, each 0 to 1 over the set; 0
            outside the foreground.
    """

    first: list[Tensor]
    foreground: list[Tensor]
    rgb: list[Tensor]


def pca_maps(features: Features, grids: Grid | Sequence[Grid], components: int = 4) -> list[Tensor]:
    """Principal components of the patches of a set of images, as maps; one basis for all images.

    The layer-wise pictures of arXiv 2308.16271 (Fig. 6 and 9) show the first component in grey and the next three as
    RGB, for all patches. `unit_range` brings them to [0, 1].

    The patches are centred at their mean over the set. (Appendix B.2 writes eigenvectors of Z*Z and does not mention
    the mean; PCA, and the works that it follows, subtract it.) Signs depend only on the maps, not on the order of the
    images or a rotation of the features. The first component is on average lower along the borders of the images than
    inside, because objects touch the borders less than the background does. If that does not decide, and for the other
    components, the longer tail is positive (the third moment). If all is symmetric, the first patch is positive.

    Args:
        features: (images, tokens, dim), or (tokens, dim) for each image: patches only, row by row. Float, finite. See
            `patch_features`.
        grids: (rows, columns) for each image, or one for all.
        components: Number of components, at least 1.

    Returns:
        float32 (components, rows, columns) for each image, on the device of its features, in their units. Components
        that the set does not have are 0.

    Raises:
        InputError: If a shape, a grid or a number is not as above, or all patches are equal.
    """
    if components < 1:
        raise InputError(f"components must be at least 1, not {components!r}")
    stacked, grids = _stack(features, grids)
    return _as_maps(_scores(stacked, grids, components), grids, features)


def patch_pca(features: Features, grids: Grid | Sequence[Grid], threshold: float | None = None) -> PatchPCA:
    """Foreground and parts of the objects in a set of images of one class (arXiv 2308.16271, appendix B.2, Fig. 3).

    A threshold on the first component of all patches gives the foreground (`pca_maps` says which side is up). The first
    three components of the foreground's own PCA are red, green and blue (equation 12).

    Args:
        features: See `pca_maps`.
        grids: See `pca_maps`.
        threshold: The foreground is above the mean of the first component by this many standard deviations, over the
            set. (The paper's lambda has the units of its features, which other models do not share.) None for Otsu's
            cut, between the two groups of patches that vary least inside.

    Raises:
        InputError: See `pca_maps`; also if the threshold is not finite.

    Example:
        >>> found = patch_pca(torch.rand(3, 64, 16), grids=(8, 8))  # of 3 images
        >>> found.foreground[0].shape, found.rgb[0].shape
        (torch.Size([8, 8]), torch.Size([3, 8, 8]))
    """
    stacked, grids = _stack(features, grids)
    first = _scores(stacked, grids, 1)
    if threshold is None:
        cut = otsu_cut(first)
    elif math.isfinite(threshold):
        cut = threshold * float(first.square().mean().sqrt())
    else:
        raise InputError(f"threshold must be a finite number of standard deviations, not {threshold!r}")
    foreground = first[:, 0] > cut
    colours = first.new_zeros(len(stacked), 3)
    if foreground.any():
        colours[foreground] = _unit(_principal_scores(stacked[foreground], 3))
    return PatchPCA(
        first=[one[0] for one in _as_maps(_unit(first), grids, features)],
        foreground=[one[0] > 0 for one in _as_maps(foreground[:, None], grids, features)],
        rgb=_as_maps(colours, grids, features),
    )


def unit_range(maps: Sequence[Tensor]) -> list[Tensor]:
    """Brings each component to [0, 1] over a set, for drawing.

    Args:
        maps: Float (components, rows, columns) for each image, as `pca_maps` returns.

    Returns:
        The same shapes; a constant component is 0.

    Raises:
        InputError: If there are no maps, or they differ in the number of components.
    """
    if not maps or {one.ndim for one in maps} != {3} or len({len(one) for one in maps}) > 1:
        raise InputError(f"expected maps (components, rows, columns), got {[tuple(one.shape) for one in maps]}")
    united = _unit(torch.cat([one.flatten(1).T for one in maps]))
    sizes = [one[0].numel() for one in maps]
    return [part.T.view_as(one) for part, one in zip(united.split(sizes), maps, strict=True)]


def _stack(features: Features, grids: Grid | Sequence[Grid]) -> tuple[Tensor, list[Grid]]:
    """All patches stacked, float64 (patches, dim) on the CPU, and the grid of each image."""
    shapes = [tuple(one.shape) for one in features]
    if not shapes or any(len(shape) != 2 or 0 in shape for shape in shapes) or len({dim for _, dim in shapes}) > 1:
        raise InputError(f"expected features (tokens, dim) for each image, all of one dim, got shapes {shapes[:10]}")
    pairs: list[Grid] = [grids] * len(shapes) if _is_grid(grids) else list(grids)  # type: ignore[list-item, arg-type]
    if len(pairs) != len(shapes) or not all(map(_is_grid, pairs)):
        raise InputError(f"expected (rows, columns) for each of {len(shapes)} images, or one for all, got {grids!r}")
    for index, ((tokens, _), (rows, columns)) in enumerate(zip(shapes, pairs, strict=True)):
        if rows * columns != tokens:
            raise InputError(
                f"image {index} has {tokens} tokens, but its grid is {rows} x {columns}; leave out [CLS] and other "
                "tokens that are not patches"
            )
    if not all(one.is_floating_point() for one in features):
        raise InputError(f"features must be float, not {[str(one.dtype) for one in features][:10]}")
    stacked = torch.cat([one.detach().to("cpu", torch.float64) for one in features])
    bad = int((~stacked.isfinite()).sum())
    if bad:
        raise InputError(f"{bad} values of the features are NaN or infinite; check the images that they came from")
    return stacked, pairs


def _is_grid(grid: object) -> bool:
    return isinstance(grid, tuple) and len(grid) == 2 and all(is_whole(side) and side > 0 for side in grid)


def _scores(stacked: Tensor, grids: Sequence[Grid], components: int) -> Tensor:
    """(patches, components), the first with its low side along the borders."""
    scores = _principal_scores(stacked, components)
    first = scores[:, 0]
    if not first.any():
        raise InputError(
            "all patches of all images have the same features, so PCA finds nothing; check the images and the weights"
        )
    along = first[torch.cat([_border(rows, columns) for rows, columns in grids])].mean()
    if along > NOTHING * first.abs().mean():
        first.neg_()
    return scores


def _border(rows: int, columns: int) -> Tensor:
    border = torch.ones(rows, columns, dtype=torch.bool)
    border[1:-1, 1:-1] = False
    return border.flatten()


def _principal_scores(stacked: Tensor, components: int) -> Tensor:
    """(patches, components): projections on the principal directions, longer tail up; 0 for missing components."""
    centred = stacked - stacked.mean(0)
    variances, directions = torch.linalg.eigh(centred.T @ centred)  # ascending
    scores = stacked.new_zeros(len(stacked), components)
    there = min(components, stacked.shape[1])
    scores[:, :there] = centred @ directions.flip(1)[:, :there]
    lengths, largest = scores.norm(dim=0), variances[-1].clamp_min(0).sqrt()
    scores[:, lengths <= NOTHING * largest] = 0
    if largest <= NOTHING * stacked.norm():
        scores.zero_()
    for component in scores.T:
        cubes = component**3
        tail = cubes.sum()
        if tail.abs() <= NOTHING * cubes.abs().sum():
            nonzero = component[component.abs() > NOTHING * component.abs().max()]
            tail = nonzero[0] if len(nonzero) else tail
        if tail < 0:
            component.neg_()
    return scores


def _unit(scores: Tensor) -> Tensor:
    """Each column to [0, 1]."""
    low, high = scores.amin(0), scores.amax(0)
    return (scores - low) / torch.where(high > low, high - low, 1.0)


def _as_maps(scores: Tensor, grids: Sequence[Grid], features: Features) -> list[Tensor]:
    """(patches, components) as float32 (components, rows, columns) for each image, on the device of its features."""
    parts = scores.split([rows * columns for rows, columns in grids])
    return [
        part.T.reshape(-1, rows, columns).to(one.device, torch.float32)
        for part, (rows, columns), one in zip(parts, grids, features, strict=True)
    ]


if not TYPE_CHECKING:
    __getattr__ = moved_names(__name__)
