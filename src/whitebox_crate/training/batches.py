"""Where the batches of a run come from: drawn by number or read from a stream, ahead of time if workers are there."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from ..errors import InputError
from .recipe import Recipe


@dataclass(frozen=True)
class Batch:
    """Images and what is in them.

    Attributes:
        images: float32 (batch, 3, height, width), RGB in [0, 1].
        labels: int64 (batch,).
        masks: bool (batch, height, width), true where the object is; None where nobody knows.
        skipped: How many pictures could not be decoded; others of the batch took their places.
    """

    images: Tensor
    labels: Tensor
    masks: Tensor | None = None
    skipped: int = 0


class Source(Protocol):
    """Batches by number: a pure function of its arguments, so that a resumed run sees the same images.

    A source or a stream may say of itself what recipe, config and card of a run then record: `name`, `class_names`,
    `images` or a length, `crop` and `flip`, and all of it in words as `description`. By `fingerprint`, a dict of what
    JSON holds, a run that goes on tells whether the data are still the same.
    """

    def draw(self, batch_size: int, *, seed: int, step: int, difficulty: float = 1.0, size: int | None = None) -> Batch:
        """The batch of this number, counted from 0 over the whole run: `batch_size` images, `size` pixels wide."""


@runtime_checkable
class Stream(Protocol):
    """Batches in the order in which they are read; for data that cannot be reached by number."""

    def stream(self, recipe: Recipe, *, start: int, rank: int, world: int) -> Iterator[Batch]:
        """The parts that process `rank` of `world` takes of all steps from `start` on, epoch after epoch.

        Each has `recipe.part_size(world)` images. Called in each worker of a DataLoader, or in the process itself;
        `torch.utils.data.get_worker_info` tells which.
        """


class Share(NamedTuple):
    """What one process of a run takes: `rank` of `world`, from step `start` up to step `last`."""

    start: int
    last: int
    rank: int
    world: int


def batches_of(source: Source | Stream, recipe: Recipe, share: Share, workers: int = 0) -> Iterator[Batch]:
    """The batches of one process: for each step in turn, `recipe.accumulation` parts of it.

    The parts of a step are numbered over processes and, within them, over accumulation, so that drawn images do not
    depend on how a batch of one size is shared out.

    Args:
        source: Where they come from.
        recipe: The numbers of the run.
        share: What this process takes.
        workers: Processes that make batches ahead of time; 0 for none. Drawn images do not depend on it.

    Raises:
        InputError: If a batch cannot be divided into so many parts.
    """
    data: _Streamed | _Drawn
    data = _Streamed(source, recipe, share) if isinstance(source, Stream) else _Drawn(source, recipe, share)
    if workers:
        return _told(DataLoader(data, batch_size=None, num_workers=workers, worker_init_fn=_outlive_interrupts))
    return (data[index] for index in range(len(data))) if isinstance(data, _Drawn) else iter(data)


def _outlive_interrupts(worker: int) -> None:
    """A terminal interrupts workers too, whose batch the step may still need; their run ends them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _told(batches: Iterable[Batch]) -> Iterator[Batch]:
    """The batches of workers; what one of them says of its data comes without its traceback around it."""
    try:
        yield from batches
    except InputError as error:
        raise InputError(str(error).rstrip().rpartition("InputError: ")[2]) from error


def check_labels(labels: Tensor, classes: int, what: str, remedy: str) -> None:
    """Raises InputError if a label, int64 (batch,), is no class of a model that has so many."""
    smallest, largest = (int(label) for label in labels.aminmax())
    if not 0 <= smallest <= largest < classes:
        raise InputError(f"{what} go from {smallest} to {largest}, and the model has {classes} classes; {remedy}")


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
    """The batches of a share, in the order in which they are read."""

    def __init__(self, source: Stream, recipe: Recipe, share: Share) -> None:
        self.source, self.recipe, self.share = source, recipe, share

    def __iter__(self) -> Iterator[Batch]:
        share = self.share
        return self.source.stream(self.recipe, start=share.start, rank=share.rank, world=share.world)
