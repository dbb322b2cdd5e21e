"""A model's states on the patch grid: the attention of [CLS], and the features of patches."""

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
from ..errors import InputError, UnknownNameError, WeightsError
from ..models import ToST, ViT
from ..models._wrappers import unwrap

Grid: TypeAlias = tuple[int, int]

PATCH_STATES: tuple[State, ...] = ("projections", "tokens", "compressed", "output")


def cls_attention(model: nn.Module, images: Tensor, layer: int = -2) -> Tensor:
    """How much [CLS] attends to each patch, per head (arXiv 2308.16271, appendix B.1, equations 10 and 11).

    The model's mode and the caller's autograd stay as they are. Call this under `torch.no_grad()` to draw the maps:
    matplotlib cannot draw tensors of an autograd graph. The values come from the layer's softmax, without the entries
    of [CLS] and other prefix tokens, so a map sums to less than 1. Equations 10 and 11 are a softmax over only the
    patches: divide a map by its sum to get that. `attention_masks` ignores the factor. CBSA's mixing matrix has entries
    of both signs; for such a layer the map is the row of `A^T A`, as CBSA's authors show it (`authors_attention` of
    `capture`).

    Args:
        model: A model that `capture` reads.
        images: (batch, in_chans, height, width), float, of a size that the model takes.
        layer: The layer, from 0; negative from the end. The paper shows -2 for CRATE and -1 for ViT. ToST has attention
            only in its last two layers.

    Returns:
        (batch, heads, grid_h, grid_w), the dtype of the attention; a grid has (height / patch height) rows.

    Raises:
        InputError: If no adapter knows the model, it has no [CLS], or the images do not fit it, or have NaN or infinite
            values.
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

    The maps of a layer divide the image softly among its heads; [CLS] takes no part. The model runs as in
    `cls_attention`.

    Args:
        model: A ToST.
        images: See `cls_attention`.
        layer: The layer, from 0; negative from the end (class attention comes last). If None, the last layer that has
            membership.

    Returns:
        (batch, heads, rows, columns), in [0, 1]; the sum over heads is 1 at each patch. The dtype of the
        membership.

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
    """The paper's features of patches: [U_1^T z, ..., U_K^T z] in CRATE, the keys in ViT (appendix B.2).

    Args:
        model: A model that `capture` reads; it runs as it is.
        images: (batch, in_chans, height, width), float, of a size that the model takes.
        layer: The layer, from 0; negative from the end.
        state: "projections", of all heads side by side, or "tokens", "compressed" or "output"; see `capture`.

    Returns:
        (features, grid): (batch, rows * columns, dim) without [CLS] and other prefix tokens, and (rows, columns).

    Raises:
        InputError: If no adapter knows the model, or the images do not fit it.
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

    The paper uses the last layer of ViT and the last but one of CRATE (arXiv 2308.16271, appendix B.3). A network with
    one layer uses that layer. A model that was cut before the measured layer uses the paper's. ToST uses its last
    layer, the second of class attention.
    """
    core = readable(model)
    measured, depth = core.pretrained_cfg.attention_layer, len(core.layers())
    if measured is not None and -depth <= measured < depth:  # a model that was cut later may lack it
        return measured % depth
    return max(0, depth - (1 if isinstance(core, ViT | ToST | Backbone) else 2))


def map_state(model: nn.Module, layer: int) -> State:
    """The state whose [CLS] row is the map of a layer: `attention`, or `authors_attention` if attention is signed.

    Args:
        model: A model that `capture` reads.
        layer: Counted from 0.
    """
    core = readable(model)
    attention = core.readings_of(unwrap(core.layers()[layer])).get("attention")
    return "authors_attention" if attention is not None and attention.signed else "attention"


def resolve_layer(model: nn.Module, layer: int | None) -> int:
    """The index of a layer, from 0, for a number that may be negative; `default_layer` if None.

    Raises:
        UnknownNameError: If there is no such layer.
    """
    return default_layer(model) if layer is None else resolve_index("layer", layer, len(readable(model).layers()))


def _cls_maps(model: nn.Module, images: Tensor, layers: Sequence[int] | None) -> Tensor:
    """(batch, layers, heads, grid_h, grid_w); for all layers if None."""
    core = readable(model)
    states: dict[State, list[int]] = {}  # the layers whose maps are in each state
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
    """The patches, which are the last tokens. (The number of tokens before them differs between layers.)"""
    count = grid[0] * grid[1]
    return state.narrow(dim, state.shape[dim] - count, count)


def check_finite(state: Tensor, what: str) -> None:
    """Raises WeightsError if a number of a state is not finite; `what` is the subject of the message, and its verb."""
    if not state.isfinite().all():
        raise WeightsError(f"{what} not finite: the weights are damaged; load them again")


def check_finite_images(images: Tensor) -> None:
    """Raises InputError if values of the images are NaN or infinite."""
    bad = (~images.isfinite()).flatten(1).sum(dim=1)
    if bad.any():
        which = bad.nonzero().flatten().tolist()
        raise InputError(
            f"{int(bad.sum())} values of the images are NaN or infinite, in images {which[:10]} of "
            f"{len(images)}; check how they were read and normalised"
        )
