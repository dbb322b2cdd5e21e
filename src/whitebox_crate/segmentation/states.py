"""A model's states on the patch grid: what [CLS] looks at, and the features of patches."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import TypeAlias

import torch
from torch import Tensor, nn

from .._indices import resolve_index, resolve_layers
from .._plan import State, layers_with
from ..backbones import Backbone, readable
from ..capturing import capture
from ..errors import InputError, UnknownNameError
from ..models import ToST, ViT
from ..models._wrappers import unwrap

Grid: TypeAlias = tuple[int, int]

PATCH_STATES: tuple[State, ...] = ("projections", "tokens", "compressed", "output")


def cls_attention(model: nn.Module, images: Tensor, layer: int = -2) -> Tensor:
    """How much [CLS] attends to each patch, per head (arXiv 2308.16271, appendix B.1, equations 10 and 11).

    The model runs as it is: its mode and the caller's autograd are left alone. Call it under `torch.no_grad()` to draw
    the maps: matplotlib takes no tensor that belongs to an autograd graph. The values are those of the
    layer's softmax, without the entries of [CLS] and other prefix tokens, so that a map sums to less than 1.
    Equations 10 and 11 are a softmax over the patches alone: divide a map by its sum to get that. The factor
    makes no difference to `attention_masks`. The mixing matrix of CBSA has entries of both signs: of such a layer, the
    map is the row of `A^T A`, which CBSA's authors look at (`authors_attention` of `capture`).

    Args:
        model: A model that `capture` reads.
        images: (batch, in_chans, height, width), float, of a size the model takes.
        layer: Which layer, from 0; negative from the end. The paper shows -2 of CRATE and -1 of ViT. ToST has attention
            in its last two layers alone.

    Returns:
        (batch, heads, grid_h, grid_w), the dtype of the attention; a grid has (height / patch height) rows.

    Raises:
        InputError: If nothing is known of the model, it has no [CLS], or the images are not of its shape, or hold NaN
            or infinity.
        UnknownNameError: If there is no such layer, or it has no attention.

    Example:
        >>> model = create_model("crate_nano", pretrained=True).eval()
        >>> with torch.no_grad():
        ...     maps = cls_attention(model, torch.zeros(1, 3, 96, 96), layer=-2)
        >>> maps.shape
        torch.Size([1, 4, 16, 16])
    """
    return _cls_maps(model, images, [layer])[:, 0]


def all_cls_attention(model: nn.Module, images: Tensor, layers: Sequence[int] | None = None) -> Tensor:
    """`cls_attention` of several layers, in one forward pass.

    Args:
        model: A model that `capture` reads.
        images: See `cls_attention`.
        layers: Which layers; None for all that have attention.

    Returns:
        (batch, layers, heads, grid_h, grid_w), the dtype of the attention.

    Raises:
        InputError: See `cls_attention`.
        UnknownNameError: See `cls_attention`.
    """
    return _cls_maps(model, images, layers)


def membership_maps(model: nn.Module, images: Tensor, layer: int | None = None) -> Tensor:
    """How much each patch belongs to each subspace of a layer of ToST, Pi of TSSA (arXiv 2412.17810, section 3).

    No [CLS] takes part: the maps of a layer are a soft division of the image among its heads. The model runs as it is,
    as of `cls_attention`.

    Args:
        model: A ToST.
        images: See `cls_attention`.
        layer: Which layer, from 0; negative from the end, where class attention comes last. The last one that has
            membership if None.

    Returns:
        (batch, heads, rows, columns), in [0, 1], 1 in sum over heads at each patch; the dtype of the membership.

    Raises:
        InputError: See `cls_attention`.
        UnknownNameError: If there is no such layer, or it has no membership; the message lists the states that it has.
    """
    core = readable(model)
    if layer is None:
        layer = layers_with(core, "membership")[-1]
    with capture(core, "membership", layers=[layer]) as trace:
        grid = core.grid_of(images)
        check_finite_images(images)
        core(images)
    found: Tensor = trace["membership", layer]
    return found.reshape(*found.shape[:-1], *grid)


def patch_features(
    model: nn.Module, images: Tensor, layer: int = -2, state: State = "projections"
) -> tuple[Tensor, Grid]:
    """The features of patches that the paper takes: [U_1^T z, ..., U_K^T z] of CRATE, the keys of ViT (appendix B.2).

    Args:
        model: A model that `capture` reads; it runs as it is.
        images: (batch, in_chans, height, width), float, of a size the model takes.
        layer: Which layer, from 0; negative from the end.
        state: "projections", of all heads side by side, or "tokens", "compressed" or "output"; see `capture`.

    Returns:
        (features, grid): (batch, rows * columns, dim) without [CLS] and other prefix tokens, and (rows, columns).

    Raises:
        InputError: If nothing is known of the model, or the images are not of its shape.
        UnknownNameError: If there is no such layer or state.

    Example:
        >>> model = create_model("crate_nano", pretrained=True).eval()
        >>> features, grid = patch_features(model, torch.zeros(1, 3, 96, 96))
        >>> features.shape, grid
        (torch.Size([1, 256, 128]), (16, 16))
    """
    if state not in PATCH_STATES:
        raise UnknownNameError.of("state of patches", state, PATCH_STATES)
    core = readable(model)
    with capture(model, state, layers=[layer]) as trace:
        grid = core.grid_of(images)
        core(images)
    tokens = trace[state, layer]
    if state == "projections":
        tokens = tokens.transpose(1, 2).flatten(2)
    return _of_patches(tokens, grid, dim=1), grid


def default_layer(model: nn.Module) -> int:
    """The layer whose [CLS] attention shows objects, from 0: the measured one of the weights, else the paper's.

    The paper looks at the last layer of ViT and at the last but one of CRATE (arXiv 2308.16271, appendix B.3). Of a
    network of one layer, it is that one. Of a model that was cut so that the measured layer is gone, the paper's. Of
    ToST it is the last one, the second of class attention.
    """
    core = readable(model)
    measured, depth = core.pretrained_cfg.attention_layer, len(core.layers())
    if measured is not None and -depth <= measured < depth:  # a model that was cut since may not have it
        return measured % depth
    return max(0, depth - (1 if isinstance(core, ViT | ToST | Backbone) else 2))


def map_state(model: nn.Module, layer: int) -> State:
    """The state whose row of [CLS] is the map of a layer: its `attention`, or `authors_attention` if that is signed.

    Args:
        model: A model that `capture` reads.
        layer: Counted from 0.
    """
    core = readable(model)
    attention = core.readings_of(unwrap(core.layers()[layer])).get("attention")
    return "authors_attention" if attention is not None and attention.signed else "attention"


def resolve_layer(model: nn.Module, layer: int | None) -> int:
    """A layer by its number, from 0; negative from the end; `default_layer` if None.

    Raises:
        UnknownNameError: If there is no such layer.
    """
    return default_layer(model) if layer is None else resolve_index("layer", layer, len(readable(model).layers()))


def _cls_maps(model: nn.Module, images: Tensor, layers: Sequence[int] | None) -> Tensor:
    """(batch, layers, heads, grid_h, grid_w); of all layers if None."""
    core = readable(model)
    states: dict[State, list[int]] = {}  # which layers have their maps in which state
    for index in resolve_layers(layers, len(core.layers())):
        states.setdefault(map_state(core, index), []).append(index)
    with ExitStack() as stack:
        traces = [
            stack.enter_context(capture(model, state, layers=layers if len(states) == 1 else having, queries="cls"))
            for state, having in states.items()
        ]
        grid = core.grid_of(images)
        check_finite_images(images)
        core(images)
    found = {layer: rows[:, :, 0] for trace in traces for (_, layer), rows in trace.items()}
    patches = _of_patches(torch.stack([found[layer] for layer in sorted(found)], dim=1), grid, dim=-1)
    return patches.reshape(*patches.shape[:-1], *grid)


def _of_patches(state: Tensor, grid: Grid, dim: int) -> Tensor:
    """Of all tokens the patches, which come last: not all layers have as many tokens before them."""
    count = grid[0] * grid[1]
    return state.narrow(dim, state.shape[dim] - count, count)


def check_finite_images(images: Tensor) -> None:
    """Raises InputError if values of the images are NaN or infinite."""
    bad = (~images.isfinite()).flatten(1).sum(dim=1)
    if bad.any():
        which = bad.nonzero().flatten().tolist()
        raise InputError(
            f"{int(bad.sum())} values of the images are NaN or infinite, in images {which[:10]} of "
            f"{len(images)}; look at how these were read and normalised"
        )
