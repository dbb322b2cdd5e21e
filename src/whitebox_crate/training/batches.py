"""The batches of a run: drawn by number or read from a stream, ahead of time if there are workers."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from ..errors import InputError
from .recipe import Recipe


@dataclass(frozen=True)
class Batch:
    """Images and their labels.

    Attributes:
        images: float32 (batch, 3, height, width), RGB in [0, 1].
        labels: int64 (batch,).
        masks: bool (batch, height, width), true on the object; None if unknown.
        skipped: Number of pictures that could not be decoded; others of the batch took their places.
    """

    images: Tensor
    labels: Tensor
    masks: Tensor | None = None
    skipped: int = 0

    def pin_memory(self) -> Batch:
        """The same in memory that a GPU reads by itself, while the processor goes on; a DataLoader calls it."""
        masks = None if self.masks is None else self.masks.pin_memory()
        return Batch(self.images.pin_memory(), self.labels.pin_memory(), masks, self.skipped)


class Source(Protocol):
    """Batches by number: a pure function of its arguments, so that a resumed run sees the same images.

    A source or a stream may have facts that recipe, config and card of a run record: `name`, `class_names`, `images` or
    a length, `crop` and `flip`, and everything in words as `description`. With `fingerprint`, a dict for JSON, a
    resumed run checks that the data are still the same.
    """

    def draw(self, batch_size: int, *, seed: int, step: int, difficulty: float = 1.0, size: int | None = None) -> Batch:
        """The batch of this number, counted from 0 over the whole run: `batch_size` images, `size` pixels wide."""


@runtime_checkable
class Stream(Protocol):
    """Batches in reading order, for data that cannot be reached by number."""

    def stream(self, recipe: Recipe, *, start: int, rank: int, world: int) -> Iterator[Batch]:
        """The parts of process `rank` of `world` in all steps from `start` on, epoch after epoch.

        Each has `recipe.part_size(world)` images. Called in each worker of a DataLoader, or in the process itself;
        `torch.utils.data.get_worker_info` tells which.
        """


class Share(NamedTuple):
    """The share of one process of a run: `rank` of `world`, from step `start` to step `last`."""

    start: int
    last: int
    rank: int
    world: int


def batches_of(source: Source | Stream, recipe: Recipe, share: Share, workers: int = 0) -> Iterator[Batch]:
    """The batches of one process: for each step in turn, `recipe.accumulation` parts of it.

    The parts of a step are numbered over processes and, within them, over accumulation. So drawn images do not depend
    on how a batch of a given size is divided.

    Args:
        source: The source of the batches.
        recipe: The numbers of the run.
        share: The share of this process.
        workers: Number of processes that make batches ahead of time; 0 for none. Drawn images do not depend on it.

    Raises:
        InputError: If a batch cannot be divided evenly into the parts.
    """
    data: _Streamed | _Drawn
    data = _Streamed(source, recipe, share) if isinstance(source, Stream) else _Drawn(source, recipe, share)
    if workers:
        options: dict[str, Any] = {"num_workers": workers, "pin_memory": torch.cuda.is_available()}
        return _told(DataLoader(data, batch_size=None, worker_init_fn=_outlive_interrupts, **options))
    return (data[index] for index in range(len(data))) if isinstance(data, _Drawn) else iter(data)


def _outlive_interrupts(worker: int) -> None:
    """Makes workers ignore interrupts from a terminal: the step may still need their batch, and the run ends them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _told(batches: Iterable[Batch]) -> Iterator[Batch]:
    """The batches of workers. An error about data in a worker is raised without the worker's traceback."""
    try:
        yield from batches
    except InputError as error:
        raise InputError(str(error).rstrip().rpartition("InputError: ")[2]) from error


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of a batch on the device; out of pinned memory, without waiting for what a GPU still computes."""
    return tensor.to(device, non_blocking=device.type == "cuda")


def check_labels(labels: Tensor, classes: int, what: str, remedy: str) -> None:
    """Raises InputError if a label, int64 (batch,), is not one of so many classes."""
    smallest, largest = (int(label) for label in labels.aminmax())
    if not 0 <= smallest <= largest < classes:
        raise InputError(f"{what} go from {smallest} to {largest}, but the model has {classes} classes; {remedy}")


def check_positive(what: str, value: int) -> None:
    """Raises InputError if a count or a size is below 1."""
    if value < 1:
        raise InputError(f"{what} is {value}; expected at least 1")


class _Drawn(Dataset[Batch]):
    """The batches of a share, by number."""

    def __init__(self, source: Source, recipe: Recipe, share: Share) -> None:
        self.source, self.recipe, self.share = source, recipe, share

    def __len__(self) -> int:
        return (self.share.last - self.share.start) * self.recipe.accumulation

    def __getitem__(self, index: int) -> Batch:
        recipe, share = self.recipe, self.share
        ahead, part = divmod(index, recipe.accumulation)
        step, parts = share.start + ahead, share.world * recipe.accumulation
        return self.source.draw(
            recipe.part_size(share.world),
            seed=recipe.seed,
            step=step * parts + share.rank * recipe.accumulation + part,
            difficulty=recipe.difficulty_at(step),
            size=recipe.size_at(step),
        )


class _Streamed(IterableDataset[Batch]):
    """The batches of a share, in reading order."""

    def __init__(self, source: Stream, recipe: Recipe, share: Share) -> None:
        self.source, self.recipe, self.share = source, recipe, share

    def __iter__(self) -> Iterator[Batch]:
        share = self.share
        return self.source.stream(self.recipe, start=share.start, rank=share.rank, world=share.world)
