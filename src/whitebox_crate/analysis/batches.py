"""Runs a model once over images and measures every layer. Keeps only mean and spread."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias, get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..backbones import Readable, readable
from ..capturing import capture
from ..errors import InputError, ProcessError
from ..models import Block, ImageTransformer
from ..models._wrappers import unwrap
from .moments import Moments
from .operators import measured_layers, refuse_folded

LayerState: TypeAlias = Literal["tokens", "compressed", "output"]
STATES: tuple[LayerState, ...] = get_args(LayerState)  # before attention, after it, after coding
REPORT_EVERY = 10.0  # seconds


class Measurement(Protocol):
    """Numbers that every image has in every layer."""

    @property
    def columns(self) -> int:
        """Number of columns."""

    def of(self, block: Block, states: Mapping[str, Tensor]) -> Tensor:
        """The numbers of each image, (batch, columns), for a layer and its states `STATES`."""


@dataclass(frozen=True)
class Measured:
    """The result of measurements.

    Attributes:
        model: Name of the architecture.
        layers: The measured layers, counted from 0.
        blocks: The layers themselves.
        moments: Moments over images of (layers, columns).
    """

    model: str
    layers: tuple[int, ...]
    blocks: tuple[Block, ...]
    moments: Moments


def over_images(
    model: nn.Module,
    loader: Iterable[Any],
    *measurements: Measurement,
    layers: int | Sequence[int] | None,
    gather: bool,
    report: Callable[[str], object] | None,
) -> list[Measured]:
    """Runs the model once on every batch and measures its layers.

    Args:
        model: A model that `capture` reads.
        loader: Batches of images, or sequences whose first entry is such a batch.
        *measurements: The measurements.
        layers: The layers; see `capture`.
        gather: Whether the processes of torch.distributed share the images.
        report: Gets lines on progress; stderr if None.

    Returns:
        The result of each measurement.

    Raises:
        InputError: If the model is folded, there are no images, or a state is not finite.
        ProcessError: With `gather`, if another process failed.
    """
    core = readable(model)
    if isinstance(core, ImageTransformer):
        refuse_folded(core)
    if not isinstance(loader, Iterable):
        raise InputError(f"a loader must be a DataLoader or another iterable of batches of images, not {loader!r}")
    indices, every = measured_layers(core, layers), core.layers()
    if gather and not (dist.is_available() and dist.is_initialized()):
        raise InputError("gather=True needs processes of torch.distributed: call init_process_group first")
    blocks: dict[int, Any] = {index: unwrap(every[index]) for index in indices}
    columns = [measurement.columns for measurement in measurements]
    moments, progress = Moments((len(indices), sum(columns))), _Progress(report or _to_stderr)
    failure: Exception | None = None
    try:
        with torch.no_grad():
            for batch in loader:
                images = _images_of(batch).to(next(core.patch_embed.parameters()))
                if len(images):
                    moments.add(_measured(model, images, blocks, measurements, moments.count))
                    progress.tell(moments.count)
    except Exception as error:
        if not gather:
            raise
        failure = error  # the others wait for this process, so tell them before it stops
    if gather:
        moments = _gathered(moments, failure)
    if not moments.count:
        raise InputError("the loader yields no images; check its data set (an iterator can be read only once)")
    progress.finish(moments.count)
    name = core.architecture or type(core).__name__
    return [Measured(name, tuple(indices), tuple(blocks[i] for i in indices), part) for part in moments.split(columns)]


def _measured(
    model: nn.Module,
    images: Tensor,
    blocks: Mapping[int, Block],
    measurements: Sequence[Measurement],
    count: int,
) -> Tensor:
    """(images, layers, columns of all measurements). `count` images came before."""
    with capture(model, *STATES, layers=list(blocks)) as trace:
        model(images)
    found = []
    for index in trace.layers:
        states: dict[str, Tensor] = {state: trace[state, index] for state in STATES}
        for state, value in states.items():
            if not bool(torch.isfinite(value).all()):
                raise InputError(
                    f"NaN or infinity in {state!r} of layer {index}, image {count} or one of the {len(images)} from "
                    "there on; check the images and the weights"
                )
        found.append(torch.cat([measurement.of(blocks[index], states) for measurement in measurements], dim=1))
    return torch.stack(found, dim=1)


def _images_of(batch: Any) -> Tensor:
    images = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
    if isinstance(images, Tensor) and not images.is_floating_point():
        raise InputError(f"images must be floating point and normalised, not {images.dtype}: see create_transform")
    if not isinstance(images, Tensor) or images.ndim != 4:
        got = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise InputError(
            f"a loader must yield batches of images (batch, channels, height, width), alone or before labels, not {got}"
        )
    return images


def check_images(core: Readable, images: Tensor) -> None:
    """Raises InputError unless these are finite, normalised images of a size that the model takes."""
    if not isinstance(images, Tensor) or not images.is_floating_point():
        got = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise InputError(f"images must be a floating point tensor, normalised, not {got}: see create_transform")
    core.grid_of(images)
    if not images.isfinite().all():
        raise InputError(
            f"{int((~images.isfinite()).sum())} values of the images are NaN or infinite; check the images"
        )


def _gathered(moments: Moments, failure: Exception | None) -> Moments:
    """The moments over all processes, equal in each to the bit."""
    group = dist.new_group(backend="gloo")  # the objects are on the CPU, whatever the model's device
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


class _Progress:
    """Reports from time to time how many images were measured, and how fast."""

    def __init__(self, say: Callable[[str], object]) -> None:
        self._say = say
        self._started = self._said = time.monotonic()

    def tell(self, count: int) -> None:
        now = time.monotonic()
        if now - self._said >= REPORT_EVERY:
            self._said = now
            self._say(f"{count:,} images measured, {count / (now - self._started):.3g} a second")

    def finish(self, count: int) -> None:
        self._say(f"{count:,} image{'' if count == 1 else 's'} measured")


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
