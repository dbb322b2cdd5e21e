"""One pass of a model over images, with every layer measured and nothing kept but mean and spread."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .._indices import resolve_layers
from ..capturing import State, capture
from ..errors import InputError, ProcessError
from ..models import Block, ImageTransformer
from ..models._wrappers import transformer_in, unwrap
from .moments import Moments

REPORT_EVERY = 10.0  # seconds


@dataclass(frozen=True)
class Pass:
    """What a pass found.

    Attributes:
        model: Name of the architecture.
        layers: Which were measured, counted from 0.
        blocks: The layers themselves.
        moments: Over images, of (layers, columns).
    """

    model: str
    layers: tuple[int, ...]
    blocks: tuple[Block, ...]
    moments: Moments


def over_images(
    model: nn.Module,
    loader: Iterable[Any],
    measure: Callable[[Block, Mapping[str, Tensor]], Tensor],
    columns: int,
    states: Sequence[State],
    *,
    layers: int | Sequence[int] | None,
    gather: bool,
    report: Callable[[str], object] | None,
) -> Pass:
    """Runs the model on every batch and measures its layers.

    Args:
        model: A model of this package.
        loader: Batches of images, or sequences that begin with one.
        measure: (batch, columns) of a layer and its captured states.
        columns: How many numbers an image has in a layer.
        states: Which states `measure` needs.
        layers: Which layers, as in `capture`.
        gather: Whether the processes of torch.distributed share the images.
        report: Takes lines on progress; to stderr if None.

    Raises:
        InputError: If the model is folded, there are no images, or a state is not finite.
        ProcessError: With `gather`, if another process failed.
    """
    core = transformer_in(model)
    refuse_folded(core)
    if not isinstance(loader, Iterable):
        raise InputError(f"a loader is a DataLoader or another iterable of batches of images, not {loader!r}")
    indices = resolve_layers(layers, len(core.blocks))
    blocks: list[Any] = [unwrap(core.blocks[index]) for index in indices]
    if gather and not (dist.is_available() and dist.is_initialized()):
        raise InputError("gather=True is for processes of torch.distributed: call init_process_group first")
    say = report or _to_stderr
    moments = Moments((len(indices), columns))
    failure: Exception | None = None
    try:
        _measure_all(model, loader, measure, states, indices, blocks, moments, say)
    except Exception as error:
        if not gather:
            raise
        failure = error  # the others wait for this process: they are told before it stops
    if gather:
        moments = _gathered(moments, failure)
    if not moments.count:
        raise InputError("the loader yields no images; look at its data set (an iterator can be read only once)")
    say(f"{moments.count:,} images measured")
    return Pass(getattr(core, "architecture", "") or type(core).__name__, tuple(indices), tuple(blocks), moments)


def refuse_folded(core: ImageTransformer) -> None:
    """Weights of a folded model, and what its norms give, are not those of the equations: nothing here reads them.

    Raises:
        InputError: If the model is folded.
    """
    if core.folded:
        raise InputError("this model is folded, its weights are products of the paper's: give the one before folding")


@torch.no_grad()
def _measure_all(
    model: nn.Module,
    loader: Iterable[Any],
    measure: Callable[[Block, Mapping[str, Tensor]], Tensor],
    states: Sequence[State],
    indices: Sequence[int],
    blocks: Sequence[Block],
    moments: Moments,
    say: Callable[[str], object],
) -> None:
    weight = transformer_in(model).cls_token
    started = said = time.monotonic()
    for batch in loader:
        images = _images_of(batch).to(weight.device, weight.dtype)
        if not len(images):
            continue
        with capture(model, *states, layers=indices) as trace:
            model(images)
        found = []
        for index, block in zip(indices, blocks, strict=True):
            of_layer: dict[str, Tensor] = {state: trace[state, index] for state in states}
            for state, value in of_layer.items():
                if not bool(torch.isfinite(value).all()):
                    raise InputError(
                        f"NaN or infinity in {state!r} of layer {index}, image {moments.count} or one of the "
                        f"{len(images)} from there on; look at the images and at the weights"
                    )
            found.append(measure(block, of_layer))
        moments.add(torch.stack(found, dim=1))
        now = time.monotonic()
        if now - said >= REPORT_EVERY:
            said = now
            say(f"{moments.count:,} images measured, {moments.count / (now - started):.3g} a second")


def _images_of(batch: Any) -> Tensor:
    images = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
    if isinstance(images, Tensor) and not images.is_floating_point():
        raise InputError(f"images are floating point and normalised, not {images.dtype}: see create_transform")
    if not isinstance(images, Tensor) or images.ndim != 4:
        got = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise InputError(
            f"a loader yields batches of images (batch, channels, height, width), alone or before labels, not {got}"
        )
    return images


def _gathered(moments: Moments, failure: Exception | None) -> Moments:
    """The moments of all processes, the same in each to the bit."""
    group = dist.new_group(backend="gloo")  # the objects are on the CPU, whatever the model is on
    parts: list[Any] = [None] * dist.get_world_size()
    told = None if failure is None else f"{type(failure).__name__}: {failure}"
    dist.all_gather_object(parts, (moments, told), group=group)
    dist.destroy_process_group(group)
    if failure is not None:
        raise failure
    for rank, (_, message) in enumerate(parts):
        if message is not None:
            raise ProcessError(f"process {rank} failed: {message}")
    whole = Moments(tuple(moments.mean.shape))
    for part, _ in parts:
        whole.merge(part)
    return whole


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
