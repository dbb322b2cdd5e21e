"""Weights made for images of other sizes or channels, fitted to a model."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from einops import rearrange
from torch import Tensor

from .layers import NormedPatchEmbed, PatchEmbed
from .models import ImageTransformer

_EMBED = "patch_embed."


def fit_positions(
    state: Mapping[str, Tensor], model: ImageTransformer, img_size: tuple[int, int] | None = None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Resamples `pos_embed` to the patch grid of a model, as the model itself does for images of other sizes.

    Args:
        state: Parameter name -> tensor, in the names of this package.
        model: The model.
        img_size: (height, width) of the images that the weights were made with, pixels. If None, or if it cannot be
            right, positions are taken to be on the model's own grid, or else on a square one.

    Returns:
        The tensors with what was changed in place of the old, and name -> what was done.
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
    """The patch grid that a position embedding is for; the model's own where it is none that could be resampled."""
    own = model.patch_embed.grid_size
    if pos_embed is None or pos_embed.ndim != 3 or pos_embed.shape[::2] != (1, model.embed_dim):
        return own
    patches = pos_embed.shape[1] - model.num_prefix_tokens
    side = math.isqrt(max(patches, 0))
    patch_height, patch_width = model.patch_embed.patch_size
    told = own if img_size is None else (img_size[0] // patch_height, img_size[1] // patch_width)
    for rows, columns in (told, own, (side, side)):
        if rows * columns == patches > 0:
            return rows, columns
    return own


def fit_channels(state: Mapping[str, Tensor], embed: PatchEmbed) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Fits a patch embedding to images of another number of channels.

    For one channel the weights are summed; for more they are repeated in turn and scaled so that their sum stays. An
    image whose channels repeat those of before then gives the same tokens. With a LayerNorm before the projection,
    its scale and shift move into the projection first, since they differ by channel; the LayerNorm keeps 1 and 0.

    Args:
        state: Parameter name -> tensor, in the names of this package.
        embed: The model's patch embedding.

    Returns:
        The tensors with what was changed in place of the old, and name -> what was done. Nothing is changed where the
        weights are for these channels, or cannot be an embedding of these patches.
    """
    flat = isinstance(embed, NormedPatchEmbed)
    normed = isinstance(embed, NormedPatchEmbed) and embed.norm1.elementwise_affine  # not in a folded model
    names = ["proj.weight", "proj.bias"] + (["norm1.weight", "norm1.bias"] if normed else [])
    have = _channels(state, names, embed)
    if have in (0, embed.in_chans):
        return dict(state), {}
    weight, bias, *norm = (state[_EMBED + name].float() for name in names)
    if norm:
        scale, shift = norm
        weight, bias = weight * scale, bias + weight @ shift
        patch_dim = embed.patch_size[0] * embed.patch_size[1] * embed.in_chans
        norm = [torch.ones(patch_dim), torch.zeros(patch_dim)]
    by_channel = rearrange(weight, "d (p c) -> d c p", c=have) if flat else weight
    spread = _spread(by_channel, embed.in_chans)
    fitted = [rearrange(spread, "d c p -> d (p c)") if flat else spread, bias, *norm]
    changed = {_EMBED + name: value for name, value in zip(names, fitted, strict=True)}
    changed = {name: value for name, value in changed.items() if normed or name.endswith("proj.weight")}
    return {**state, **changed}, dict.fromkeys(changed, f"from {have} to {embed.in_chans} channels")


def _channels(state: Mapping[str, Tensor], names: list[str], embed: PatchEmbed) -> int:
    """How many channels these weights are for; 0 if they cannot be an embedding of these patches."""
    if any(_EMBED + name not in state or not state[_EMBED + name].is_floating_point() for name in names):
        return 0
    weight, bias, *norm = (state[_EMBED + name] for name in names)
    if not isinstance(embed, NormedPatchEmbed):
        fits = weight.ndim == 4 and tuple(weight.shape[2:]) == embed.patch_size and bias.shape == weight.shape[:1]
        return weight.shape[1] if fits else 0
    area = embed.patch_size[0] * embed.patch_size[1]
    fits = weight.ndim == 2 and bias.shape == weight.shape[:1] and all(n.shape == weight.shape[1:] for n in norm)
    return weight.shape[1] // area if fits and weight.shape[1] % area == 0 else 0


def _spread(weight: Tensor, channels: int) -> Tensor:
    """(out, channels before, ...) -> (out, channels, ...)."""
    have = weight.shape[1]
    if channels == 1:
        return weight.sum(dim=1, keepdim=True)
    in_turn = [channel % have for channel in range(channels)]
    return weight[:, in_turn] * (have / channels)
