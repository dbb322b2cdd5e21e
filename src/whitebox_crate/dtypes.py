"""faster_dtype: float32 or bf16, whichever runs a model faster here, by a short measurement."""

from __future__ import annotations

import copy
import time

import torch
from torch import Tensor, nn

from .errors import InputError, whole_number
from .loading import plain_state
from .models import ImageTransformer

WORTH = 1.25  # times as fast that bf16, which is less exact, must be
ROUNDS, SECONDS = 9, 0.5  # at most


def faster_dtype(model: ImageTransformer, batch: int = 1) -> torch.dtype:
    """Whether a model runs faster in bf16 than in float32, on its device.

    Processors without instructions for bf16 emulate it, and are slower in it. So one layer of the model is run in both
    types in turn, on as many tokens as a batch has. After one run of each to warm up, this takes about half a second;
    longer for a large batch. The model stays as it is, and its hooks are not called.

    Args:
        model: A model of this package, of any dtype, folded or not.
        batch: Images at once.

    Returns:
        torch.bfloat16 if that takes at most 1 / 1.25 of the time, else torch.float32. Cast model and images to it.

    Raises:
        InputError: If `model` is none of this package, wrapped, quantised, or on the meta device, or `batch` is
            not a positive whole number.

    Example:
        >>> model = create_model("crate_nano", pretrained=True).eval()
        >>> dtype = faster_dtype(model)
        >>> fast, images = fold_for_inference(model).to(dtype), torch.zeros(1, 3, 96, 96)
        >>> fast(images.to(dtype)).dtype == dtype
        True
    """
    if not isinstance(model, ImageTransformer):
        raise InputError(f"faster_dtype takes a model of this package, not {type(model).__name__}: give what is inside")
    batch = whole_number("batch", batch)
    layer, device = model.blocks[-1], model.cls_token.device
    plain_state(layer, "measure the model that it was made from")
    tokens = torch.ones(batch, model.num_prefix_tokens + model.patch_embed.num_patches, model.embed_dim, device=device)
    grid = (model.patch_embed.grid_size,) if getattr(layer, "takes_grid", False) else ()
    runs = {
        dtype: (_without_hooks(layer).eval().to(dtype), (tokens.to(dtype), *grid))
        for dtype in (torch.float32, torch.bfloat16)
    }
    for run in runs.values():
        _seconds(*run)  # and all is warm
    began, rounds = time.perf_counter(), list[list[float]]()
    while len(rounds) < ROUNDS and (not rounds or time.perf_counter() - began < SECONDS):
        rounds.append([_seconds(*run) for run in runs.values()])
    in_float32, in_bf16 = map(min, zip(*rounds, strict=True))  # other work only adds to a time
    return torch.bfloat16 if in_float32 >= WORTH * in_bf16 else torch.float32


def _without_hooks(layer: nn.Module) -> nn.Module:
    """A copy. The hooks of the model's owner have no business with tokens that are invented."""
    copied = copy.deepcopy(layer)
    for of in copied.modules():
        for hooks in (of._forward_hooks, of._forward_pre_hooks, of._backward_hooks, of._backward_pre_hooks):
            hooks.clear()
    return copied


@torch.no_grad()
def _seconds(layer: nn.Module, given: tuple[Tensor | tuple[int, int], ...]) -> float:
    """How long a layer takes."""
    began = time.perf_counter()
    out: Tensor = layer(*given)
    if out.device.type != "cpu":
        torch.accelerator.synchronize(out.device)
    return time.perf_counter() - began
