"""MaskCut: finds objects one after the other by normalised cuts of patch features (arXiv 2301.11320, section 3.2)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor, nn

from .._plan import State
from .._tables import html_table
from ..errors import InputError, check_kind, whole_number
from .attention import upsample
from .ncut import TIE, Solver, affinity, first_peak, ncut_eigenvector
from .pieces import connected_component
from .states import patch_features

Refine: TypeAlias = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class CutRound:
    """One round of MaskCut, step by step. Masks are bool (grid_h, grid_w); patches count row by row.

    Attributes:
        painted: The patches of earlier accepted masks; their features are zero in this round.
        eigenvector: float64 (tokens,); all zero if there is nothing to cut.
        salient: Where the eigenvector is above its mean.
        corners: How many of the four corners are salient.
        foreground: `salient` or its complement, by the rules of `bipartition`.
        seed: The patch where the foreground is strongest; None if there is nothing to cut.
        component: The part of the foreground that is connected with the seed.
        accepted: `component`, or an empty mask if the component was refused.
    """

    painted: Tensor
    eigenvector: Tensor
    salient: Tensor
    corners: int
    foreground: Tensor
    seed: int | None
    component: Tensor
    accepted: Tensor


@dataclass(frozen=True)
class FoundObjects:
    """The objects that MaskCut finds in a batch of images.

    Attributes:
        masks: bool (batch, n, height, width), at the size of the images, disjoint within an image. A mask may be
            empty: then that round found nothing.
        boxes: int64 (batch, n, 4): x, y, width, height of each mask, pixels; zeros for an empty one.
    """

    masks: Tensor
    boxes: Tensor

    def _repr_html_(self) -> str:
        """A table for notebooks, with a row for each object."""
        shares = self.masks.flatten(2).double().mean(-1)
        found = [
            (image, index, *self.boxes[image, index].tolist(), f"{100 * shares[image, index]:.1f}%")
            for image, index in shares.nonzero().tolist()
        ]
        return html_table([("image", "object", "x", "y", "width", "height", "share of the image"), *found])


def maskcut(
    features: Tensor, grid: tuple[int, int], n: int = 3, tau: float = 0.15, *, solver: Solver = "lanczos"
) -> Tensor:
    """Cuts objects out of an image, from the features of its patches (arXiv 2301.11320, section 3.2).

    Each round splits the patches in two by the normalised cut, takes one side as foreground, and keeps the part that is
    connected with its strongest patch. The features of these patches are zero from then on. `maskcut_rounds` shows each
    step.

    Args:
        features: (tokens, dim), float, finite: one row per patch of one image, row by row of the grid, no [CLS].
        grid: (rows, columns), rows * columns = tokens.
        n: Number of rounds; each gives one mask.
        tau: Patches whose cosine is above this are linked, in [0, 1).
        solver: "lanczos", or "dense" for the reference; see `ncut_eigenvector`.

    Returns:
        bool (n, grid_h, grid_w), on the device of `features`, disjoint. A mask is empty if a round finds nothing new:
        a part of the last mask, a speck, or no difference between the patches.

    Raises:
        InputError: If an argument is not as above.
        UnknownNameError: If the solver does not exist.

    Example:
        >>> features = torch.eye(2)[[0] * 8 + [1] * 4]  # 12 patches of two kinds
        >>> maskcut(features, grid=(3, 4), n=1).int()
        tensor([[[0, 0, 0, 0],
                 [0, 0, 0, 0],
                 [1, 1, 1, 1]]], dtype=torch.int32)
    """
    rounds = maskcut_rounds(features, grid, n, tau, solver=solver)
    return torch.stack([cut.accepted & ~cut.painted for cut in rounds]).to(features.device)


def maskcut_rounds(
    features: Tensor, grid: tuple[int, int], n: int = 3, tau: float = 0.15, *, solver: Solver = "lanczos"
) -> list[CutRound]:
    """The rounds of `maskcut`, with every step. Arguments and errors are the same.

    From the second round on, a component is refused if it has at most 1% of the patches, or an intersection over union
    above 0.5 with the accepted mask of the round before. A refused mask changes no feature: the next round finds the
    same component, and may then accept it. A later mask may contain patches of earlier ones; `maskcut` removes them.

    If all patches are linked, or none, no cut is better than another, and the round is empty.
    """
    n = whole_number("n", n)
    linked = affinity(features, tau)
    _check_grid(grid, len(linked))
    return _rounds(linked, grid, n, partial(ncut_eigenvector, solver=solver))


def maskcut_of(
    model: nn.Module,
    images: Tensor,
    layer: int = -2,
    *,
    state: State = "projections",
    n: int = 3,
    tau: float = 0.15,
    solver: Solver = "lanczos",
    refine: Refine | None = None,
) -> FoundObjects:
    """Finds objects in images by the features of a model, as in arXiv 2308.16271, appendix B.

    The model runs in its current mode, without autograd.

    Args:
        model: A model that `capture` reads.
        images: (batch, in_chans, height, width), float, of a size that the model takes.
        layer: The layer, from 0; negative from the end. The paper takes -2 for CRATE and -1 for ViT.
        state: The features: "projections" ([U_1^T z, ..., U_K^T z] in CRATE, the keys in ViT, all heads side by side),
            or "tokens", "compressed" or "output"; see `capture`.
        n: Number of masks per image.
        tau: Patches whose cosine is above this are linked, in [0, 1).
        solver: "lanczos", or "dense" for the reference.
        refine: A function such as `dense_crf`. It gets an image (in_chans, height, width) and one of its non-empty
            masks, bool (height, width), and returns the mask to use instead. Refined masks may overlap. None, as in
            the paper, keeps the masks.

    Returns:
        Masks at the size of the images, and their boxes.

    Raises:
        InputError: If an argument is not as above, the features are not finite, or `refine` does not return a mask.
        UnknownNameError: If there is no such layer, state or solver.

    Example:
        >>> from whitebox_crate.images import load_image
        >>> from whitebox_crate.preprocess import fit_photo
        >>> model = create_model("crate_nano", pretrained=True).eval()
        >>> pixels = fit_photo(model, load_image("photo.jpg"), short_side=96).pixels
        >>> found = maskcut_of(model, pixels[None], n=2)
        >>> found.masks.shape
        torch.Size([1, 2, 96, 144])
    """
    n = whole_number("n", n)
    with torch.no_grad():
        features, grid = patch_features(model, images, layer, state)
    size = (images.shape[-2], images.shape[-1])
    masks = torch.empty(len(features), n, *size, dtype=torch.bool, device=features.device)
    for of_image, patches in zip(masks, features, strict=True):
        of_image.copy_(upsample(maskcut(patches, grid, n, tau, solver=solver), size))
    if refine is not None:
        for image, of_image in zip(images, masks, strict=True):
            for mask in of_image:
                if mask.any():
                    mask.copy_(_refined(refine, image, mask))
    return FoundObjects(masks, mask_boxes(masks))


def bipartition(eigenvector: Tensor, grid: tuple[int, int]) -> tuple[Tensor, int]:
    """Which side of the cut is foreground, and its seed (arXiv 2301.11320, section 3.2).

    A patch is salient if its entry of the eigenvector is above the mean. Salient patches are the foreground, unless
    they contain three or four corners of the grid, or lack the entry of largest magnitude; then the other patches are.
    The seed is the largest entry in the foreground, or the smallest if the sides were swapped.

    Entries that differ by less than `TIE` of the largest magnitude count as equal: such an entry is not above the mean,
    and among several peaks or seeds the first one counts, row by row.

    Args:
        eigenvector: (tokens,), float. Its sign matters; see `ncut_eigenvector`.
        grid: (rows, columns), rows * columns = tokens.

    Returns:
        (foreground, seed): bool (grid_h, grid_w), and the index of a patch in it.

    Raises:
        InputError: If the shapes do not fit, or the eigenvector is constant.
    """
    salient = _salient(eigenvector, grid)
    if not salient.any():
        raise InputError("all entries of the eigenvector are equal, so there is no cut; check the features")
    if _corners(salient) >= 3 or not salient.flatten()[first_peak(eigenvector.abs())]:
        return ~salient, first_peak(-eigenvector)
    return salient, first_peak(eigenvector)


def mask_boxes(masks: Tensor) -> Tensor:
    """The tight box around each mask, as in COCO's results.

    Args:
        masks: bool (..., height, width).

    Returns:
        int64 (..., 4): x and y of the upper left pixel, width, height; zeros for an empty mask.

    Raises:
        InputError: If the masks are not as above.
    """
    if masks.ndim < 2 or masks.dtype != torch.bool or 0 in masks.shape[-2:]:
        raise InputError(
            f"expected bool masks of shape (..., height, width), got {masks.dtype} of shape {tuple(masks.shape)}"
        )
    edges = []
    for across in (masks.any(dim=-2), masks.any(dim=-1)):
        flags = across.to(torch.uint8)
        first = flags.argmax(dim=-1)
        beyond = flags.shape[-1] - flags.flip(-1).argmax(dim=-1)
        edges.append((first, (beyond - first) * flags.amax(dim=-1)))
    (x, width), (y, height) = edges
    return torch.stack([x, y, width, height], dim=-1)


def _rounds(linked: Tensor, grid: tuple[int, int], n: int, solve: Callable[[Tensor], Tensor]) -> list[CutRound]:
    """The rounds of MaskCut on an affinity. `solve` finds the eigenvector of an affinity, with its sign."""
    painted = torch.zeros(grid, dtype=torch.bool)
    nothing = torch.zeros_like(painted)
    rounds: list[CutRound] = []
    for _ in range(n):
        # A zero feature is linked to no patch, so the cosines need not be computed again.
        kept = ~painted.flatten().to(linked.device)
        links = linked & kept & kept[:, None]
        if links.all() or not links.any():
            blank = torch.zeros(len(linked), dtype=torch.float64)
            rounds.append(CutRound(painted, blank, nothing, 0, nothing, None, nothing, nothing))
            continue
        vector = solve(links).cpu()
        salient = _salient(vector, grid)
        foreground, seed = bipartition(vector, grid)
        component = connected_component(foreground, seed)
        accepted = nothing if rounds and _refused(component, rounds[-1].accepted) else component
        rounds.append(CutRound(painted, vector, salient, _corners(salient), foreground, seed, component, accepted))
        painted = painted | accepted
    return rounds


def _refused(component: Tensor, previous: Tensor) -> bool:
    """Whether the component of a later round is a speck, or repeats the mask of the round before."""
    union, shared = int((component | previous).sum()), int((component & previous).sum())
    return 100 * int(component.sum()) <= component.numel() or 2 * shared > union


def _salient(eigenvector: Tensor, grid: tuple[int, int]) -> Tensor:
    if eigenvector.ndim != 1:
        raise InputError(f"expected an eigenvector of shape (tokens,), got {tuple(eigenvector.shape)}")
    _check_grid(grid, len(eigenvector))
    salient = eigenvector > eigenvector.mean() + TIE * eigenvector.abs().max()
    return salient.view(grid[0], grid[1])


def _corners(mask: Tensor) -> int:
    """Number of grid corners in the mask. In a grid of one row or column, a patch counts as two corners."""
    return int(mask[[0, 0, -1, -1], [0, -1, 0, -1]].sum())


def _check_grid(grid: tuple[int, int], tokens: int) -> None:
    check_kind("grid", grid, Sequence, "it is (rows, columns)")
    if len(grid) != 2 or min(grid) < 1 or math.prod(grid) != tokens:
        raise InputError(
            f"grid must be (rows, columns) with one patch per token, but {tuple(grid)} does not make {tokens}; leave "
            "[CLS] and other prefix tokens out of the features"
        )


def _refined(refine: Refine, image: Tensor, mask: Tensor) -> Tensor:
    refined: object = refine(image, mask.clone())
    if not isinstance(refined, Tensor) or refined.dtype != torch.bool or refined.shape != mask.shape:
        told = f"{refined.dtype} of {tuple(refined.shape)}" if isinstance(refined, Tensor) else type(refined).__name__
        raise InputError(f"refine must return a bool tensor of shape {tuple(mask.shape)}, not {told}")
    return refined
