"""Fits weights for images of another size, or with other channels, to a model."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from einops import rearrange
from torch import Tensor, nn

from .layers import NormedPatchEmbed, PatchEmbed
from .models import ImageTransformer

_EMBED = "patch_embed."


def fit_to(
    model: ImageTransformer, state: Mapping[str, Tensor], img_size: tuple[int, int] | None = None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Fits the weights that depend on the size of images and their channels.

    Args:
        model: The model.
        state: Parameter name -> tensor, in the names of this package.
        img_size: See `fit_positions`.

    Returns:
        The tensors, with changed ones replaced, and name -> what was done.
    """
    fitting, positions = fit_positions(state, model, img_size)
    fitting, channels = fit_channels(fitting, model.patch_embed)
    fitting, predicted = _fit_predictions(fitting, model)
    return fitting, {**positions, **channels, **predicted}


def fit_positions(
    state: Mapping[str, Tensor], model: ImageTransformer, img_size: tuple[int, int] | None = None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Resamples `pos_embed` to the patch grid of a model, as the model does for images of other sizes.

    Args:
        state: Parameter name -> tensor, in the names of this package.
        model: The model.
        img_size: (height, width) in pixels of the images that the weights were trained with. If None or impossible,
            positions are taken to be on the model's own grid, or else on a square grid.

    Returns:
        The tensors, with changed ones replaced, and name -> what was done.
    """
    grid, new_grid = _grid_of_positions(state.get("pos_embed"), model, img_size), model.patch_embed.grid_size
    if grid == new_grid:
        return dict(state), {}
    resampled = model.resample_positions(state["pos_embed"], grid, new_grid)
    how = f"resampled from {grid[0]} x {grid[1]} to {new_grid[0]} x {new_grid[1]}"
    return {**state, "pos_embed": resampled}, {"pos_embed": how}


def _grid_of_positions(
    pos_embed: Tensor | None, model: ImageTransformer, img_size: tuple[int, int] | None
) -> tuple[int, int]:
    """The patch grid of a position embedding; the model's own grid if the embedding cannot be resampled."""
    own = model.patch_embed.grid_size
    if pos_embed is None or pos_embed.ndim != 3 or pos_embed.shape[::2] != (1, model.embed_dim):
        return own
    patches = pos_embed.shape[1] - model.num_prefix_positions
    side = math.isqrt(max(patches, 0))
    patch_height, patch_width = model.patch_embed.patch_size
    told = own if img_size is None else (img_size[0] // patch_height, img_size[1] // patch_width)
    for rows, columns in (told, own, (side, side)):
        if rows * columns == patches > 0:
            return rows, columns
    return own


def fit_channels(state: Mapping[str, Tensor], embed: PatchEmbed) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Fits a patch embedding to images of another number of channels.

    For one channel the weights are summed. For more channels they are repeated in turn and scaled by old / new. If the
    new number is a multiple of the old, an image that repeats its channels in the same way gives the same tokens; else
    only the size of the weights is about kept. If a LayerNorm comes before the projection, its scale and shift differ
    by channel: they first move into the projection, and the LayerNorm keeps 1 and 0.

    Args:
        state: Parameter name -> tensor, in the names of this package.
        embed: The model's patch embedding.

    Returns:
        The tensors, with changed ones replaced, and name -> what was done. Nothing is changed if the weights already
        have these channels, or cannot be an embedding of these patches.
    """
    if not isinstance(embed, NormedPatchEmbed):
        return _fit_kernel(state, embed)
    normed = embed.norm1.elementwise_affine  # not in a folded model
    names = ["proj.weight", "proj.bias"] + (["norm1.weight", "norm1.bias"] if normed else [])
    have = _flat_channels(state, names, embed)
    if have in (0, embed.in_chans):
        return dict(state), {}
    weight, bias, *norm = (state[_EMBED + name].float() for name in names)
    if norm:
        scale, shift = norm
        weight, bias = weight * scale, bias + weight @ shift
        patch_dim = embed.patch_size[0] * embed.patch_size[1] * embed.in_chans
        norm = [torch.ones(patch_dim), torch.zeros(patch_dim)]
    spread = rearrange(_spread(rearrange(weight, "d (p c) -> d c p", c=have), embed.in_chans), "d c p -> d (p c)")
    changed = {_EMBED + name: value for name, value in zip(names, [spread, bias, *norm], strict=True)}
    changed = {name: value for name, value in changed.items() if normed or name.endswith("proj.weight")}
    return {**state, **changed}, dict.fromkeys(changed, f"from {have} to {embed.in_chans} channels")


def _fit_kernel(state: Mapping[str, Tensor], embed: PatchEmbed) -> tuple[dict[str, Tensor], dict[str, str]]:
    """`fit_channels` for a convolution that reads the pixels."""
    own = next((named for named in embed.named_modules() if isinstance(named[1], nn.Conv2d)), None)
    if own is None:
        return dict(state), {}
    name, convolution = f"{_EMBED}{own[0]}.weight", own[1]
    weight = state.get(name)
    fits = weight is not None and weight.is_floating_point() and weight.shape[2:] == convolution.weight.shape[2:]
    if weight is None or not fits or weight.shape[1] in (0, embed.in_chans):
        return dict(state), {}
    how = f"from {weight.shape[1]} to {embed.in_chans} channels"
    return {**state, name: _spread(weight.float(), embed.in_chans)}, {name: how}


def _flat_channels(state: Mapping[str, Tensor], names: list[str], embed: PatchEmbed) -> int:
    """The number of channels of these weights of flat patches; 0 if they cannot be an embedding of these patches."""
    if any(_EMBED + name not in state or not state[_EMBED + name].is_floating_point() for name in names):
        return 0
    weight, bias, *norm = (state[_EMBED + name] for name in names)
    area = embed.patch_size[0] * embed.patch_size[1]
    fits = weight.ndim == 2 and bias.shape == weight.shape[:1] and all(n.shape == weight.shape[1:] for n in norm)
    return weight.shape[1] // area if fits and weight.shape[1] % area == 0 else 0


def _fit_predictions(state: Mapping[str, Tensor], model: ImageTransformer) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Fits a layer that predicts the pixels of patches (CRATE-MAE's decoder) to another number of channels.

    For one channel the predictions are averaged. For more channels they are repeated in turn.
    """
    chans, area = model.in_chans, math.prod(model.patch_embed.patch_size)
    named = {name: state[name] for name in ("decoder_pred.weight", "decoder_pred.bias") if name in state}
    rows = {len(value) if value.ndim else 0 for value in named.values()}
    if len(named) != 2 or len(rows) != 1 or (have := rows.pop()) % area or have in (0, area * chans):
        return dict(state), {}
    fitted = {}
    for name, value in named.items():
        by_channel = value.unflatten(0, (area, have // area))
        if chans == 1:
            by_channel = by_channel.mean(dim=1, keepdim=True)
        else:
            by_channel = by_channel[:, [channel % (have // area) for channel in range(chans)]]
        fitted[name] = by_channel.flatten(0, 1)
    return {**state, **fitted}, dict.fromkeys(fitted, f"from {have // area} to {chans} channels")


def _spread(weight: Tensor, channels: int) -> Tensor:
    """(out, channels before, ...) -> (out, channels, ...)."""
    have = weight.shape[1]
    if channels == 1:
        return weight.sum(dim=1, keepdim=True)
    in_turn = [channel % have for channel in range(channels)]
    return weight[:, in_turn] * (have / channels)
