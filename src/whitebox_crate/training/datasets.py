"""Labelled pictures in batches: drawn by number or read from a stream, as a function of seed, epoch and image."""

from __future__ import annotations

import functools
import itertools
import os
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from .._random import numpy_generator, torch_generator
from ..errors import InputError, check_kind, require
from .batches import Batch, check_positive
from .decoding import Decoder, Example
from .fingerprint import fingerprint_of_files, fingerprint_of_pictures
from .recipe import Crop, Recipe
from .schema import Columns, image_column_of, label_column_of, labels_of, undecoded
from .sources import find


class ImageDataset:
    """Labelled pictures that can be reached by number; `open_images` makes it.

    Args:
        pictures: A `datasets.Dataset` of one column, undecoded.
        labels: int64 (count,), indices into `class_names`.
        class_names: The names of the classes.
        decoder: Makes batches.
        size: Side of the images in pixels, if a call does not give it.
        name: Name in recipe and card of a run.

    Attributes:
        name: Name of the images.
        class_names: The names of the classes.
        crop: Which part of a picture is used in training.
        flip: Whether half of them are mirrored.
    """

    def __init__(
        self,
        pictures: Any,
        labels: npt.NDArray[np.int64],
        class_names: tuple[str, ...],
        decoder: Decoder,
        size: int,
        name: str = "",
    ) -> None:
        self.name, self.class_names = name, class_names
        self.crop, self.flip = decoder.crop, decoder.flip
        self._pictures, self._labels, self._decoder, self._size = pictures, labels, decoder, size

    @property
    def fingerprint(self) -> dict[str, Any]:
        """The identity of these images; see `fingerprint_of_pictures`."""
        return fingerprint_of_pictures(self._pictures, self._labels)

    def __len__(self) -> int:
        return len(self._labels)

    def draw(self, batch_size: int, *, seed: int, step: int, difficulty: float = 1.0, size: int | None = None) -> Batch:
        """The batch of this number. Batches go through all images, in a new order in each epoch.

        Each image is drawn once per epoch, whatever the batch size and the number of processes. A batch at the end of
        an epoch is filled up from the next epoch. Crop and flip of a picture depend only on seed, epoch and picture.

        Args:
            batch_size: Number of images.
            seed: Seed of the run.
            step: Number of the batch within the run, if all batches have this size.
            difficulty: Difficulty of composites; ignored for photographs.
            size: Side of the images in pixels, if different from the initial one.

        Raises:
            InputError: If there are fewer images than a batch needs, none of them can be decoded, or a number is not
                positive.
        """
        size = _checked(batch_size, self._size if size is None else size)
        if batch_size > len(self):
            raise InputError(
                f"a batch needs {batch_size} images, but there are {len(self)}: lower batch_size (--batch-size)"
            )
        first = step * batch_size
        places = [divmod(position, len(self)) for position in range(first, first + batch_size)]
        keys = [(seed, epoch, int(_order(len(self), seed, epoch)[place])) for epoch, place in places]
        return self._decoder.batch(self._examples([index for *_, index in keys]), size, keys)

    def in_order(self, batch_size: int, size: int | None = None, *, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """All images once, for measuring: not shuffled, transformed by `create_transform(size)`, in [0, 1].

        The last batch may be smaller. A picture that cannot be decoded is left out, and counted in a nearby batch.

        Args:
            batch_size: Number of images.
            size: Side of the images in pixels, if different from the initial one.
            rank: Rank of the process. It gets every `world`-th batch, perhaps none, and decodes only these.
            world: Number of processes that share the images.

        Raises:
            InputError: If no picture of a share can be decoded, or a number is not positive.
        """
        size = _checked(batch_size, self._size if size is None else size)
        firsts = range(rank * batch_size, len(self), world * batch_size)
        groups = (self._examples(range(first, min(first + batch_size, len(self)))) for first in firsts)
        return self._decoder.in_order(groups, size, may_be_empty=world > 1)

    def hold_out(self, share: float, seed: int = 0) -> tuple[ImageDataset, ImageDataset]:
        """Splits the images in two: the rest to train on, and a share of each class to measure with.

        The share of each class is rounded, but at least one picture is held out, and never all. So a class with a
        single picture has none to measure with. The choice depends only on the seed.

        Args:
            share: Share of the images, more than 0 and less than 1.
            seed: Seed of the choice.

        Returns:
            The part to train on and the held-out part, each with all class names.

        Raises:
            InputError: If the share is out of range, or no class has two pictures.
        """
        if not 0 < share < 1:
            raise InputError(f"the share to hold out must be more than 0 and less than 1, not {share}")
        held = np.zeros(len(self), bool)
        for label in range(len(self.class_names) or 1):
            own = np.flatnonzero(self._labels == label)
            count = min(max(1, round(share * len(own))), len(own) - 1)
            order = torch.randperm(len(own), generator=torch_generator(seed, f"held out of class {label}"))
            held[own[order[: max(0, count)].numpy()]] = True
        if not held.any():
            raise InputError(
                f"{self.name} has only one image per class, so none can be held out: give other data to validate with"
            )
        what = f"held-out {100 * share:g}% of each class (seed {seed})"
        left = self._part(np.flatnonzero(~held), f"{self.name} without the {what}")
        return left, self._part(np.flatnonzero(held), f"{self.name}, the {what}")

    def _part(self, indices: npt.NDArray[np.int64], name: str) -> ImageDataset:
        pictures, labels = self._pictures.select(indices), self._labels[indices]
        return ImageDataset(pictures, labels, self.class_names, self._decoder, self._size, name)

    def _examples(self, indices: Sequence[int]) -> list[Example]:
        [pictures] = self._pictures[list(indices)].values()
        return [
            Example(picture, int(self._labels[index]), f"image {index}")
            for picture, index in zip(pictures, indices, strict=True)
        ]


class StreamedImageDataset:
    """Labelled pictures read one after the other, for data too large or too far away to copy first.

    `open_images` makes it.

    Args:
        dataset: A `datasets.IterableDataset`, undecoded.
        columns: Its columns of pictures and labels.
        decoder: Makes batches.
        size: Side of the images in pixels, if a call does not give it.
        images: Number of images, if known.
        buffer: Number of undecoded pictures that are mixed at a time.
        name: Name in recipe and card of a run.
        files: The files that are read, if known.

    Attributes:
        name: Name of the images.
        class_names: The names of the classes.
        crop: Which part of a picture is used in training.
        flip: Whether half of them are mirrored.
        images: Number of images; None if unknown.
    """

    def __init__(
        self,
        dataset: Any,
        columns: Columns,
        decoder: Decoder,
        size: int,
        images: int | None,
        buffer: int,
        name: str = "",
        files: Sequence[str] = (),
    ) -> None:
        self.name, self.class_names, self.images = name, columns.class_names, images
        self.crop, self.flip = decoder.crop, decoder.flip
        self._dataset, self._columns = dataset, columns
        self._decoder, self._size, self._buffer, self._files = decoder, size, buffer, files

    @property
    def fingerprint(self) -> dict[str, Any]:
        """The identity of the files, if known; see `fingerprint_of_files`."""
        return fingerprint_of_files(self._files) if self._files else {}

    def stream(self, recipe: Recipe, *, start: int, rank: int, world: int) -> Iterator[Batch]:
        """The parts of a process in all steps from `start` on, without end; see `Stream`.

        Processes and their workers share the images of an epoch; no two get the same image. Each reads its share in a
        new order in each epoch. Images at the end that do not fill a batch are left out.

        If the number of images is known, an epoch has as many batches for each as an equal share fills. A smaller
        share, from unequal shards, starts again within the epoch. A resumed run then reads again (undecoded) only the
        part of its epoch that it had read. If the number is unknown, a share ends with its shards, and a resumed run
        reads again everything that it had read.

        The batches equal those of a run that was never stopped, if the numbers of processes and workers are the same.

        Raises:
            InputError: If a share has fewer images than a batch, none of a batch can be decoded, or a label is out of
                range.
        """
        worker = torch.utils.data.get_worker_info()
        workers, asked = (worker.num_workers, worker.id) if worker else (1, 0)
        size, shares = recipe.part_size(world), world * workers
        # Parts are taken from the workers in turn, from the first worker on, also after a stop. So a worker takes over
        # the share of the worker whose turn it would have been.
        first = start * recipe.accumulation + asked
        share, done = rank * workers + first % workers, first // workers
        if (shards := self._dataset.num_shards) % shares and shards > 1 and rank == asked == 0:
            warnings.warn(
                f"{shards} shards are not a multiple of {shares} (processes x workers), so each reads all of them: "
                "choose another number of workers, or write other shards",
                stacklevel=2,
            )
        most = None if self.images is None else self.images // shares // size
        if most == 0:
            raise _too_few(size, shares)
        begun, done = divmod(done, most) if most else (0, done)
        parts = itertools.count(first, workers)
        for epoch in itertools.count(begun):
            for index, rows in enumerate(self._epoch(recipe.seed, epoch, share, shares, size, most)):
                if done:
                    done -= 1
                    continue
                numbers = [(index * size + place) * shares + share for place in range(size)]
                examples = self._columns.examples(rows, numbers)
                keys = [(recipe.seed, epoch, number) for number in numbers]
                yield self._decoder.batch(examples, recipe.size_at(next(parts) // recipe.accumulation), keys)

    def in_order(self, batch_size: int, size: int | None = None, *, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """All images once; see `ImageDataset.in_order`. Each process reads all of them and decodes its own."""
        size = _checked(batch_size, self._size if size is None else size)
        batches = itertools.islice(enumerate(_readable(self._dataset.iter(batch_size), self.name)), rank, None, world)
        groups = (self._columns.examples(rows, itertools.count(index * batch_size)) for index, rows in batches)
        return self._decoder.in_order(groups, size, may_be_empty=world > 1)

    def _epoch(
        self, seed: int, epoch: int, share: int, shares: int, size: int, most: int | None
    ) -> Iterator[dict[str, list[Any]]]:
        """Undecoded batches of a share: all whole batches, or at most `most`."""
        split = require("datasets.distributed", "train").split_dataset_by_node
        # One shard at a time: threads would read several, each with its own pictures in memory.
        mixed = self._dataset.shuffle(seed=seed % 2**63, buffer_size=self._buffer, max_buffer_input_shards=1)
        own = split(mixed, rank=share, world_size=shares)
        own.set_epoch(epoch)
        read = 0
        while not read or most:
            before = read
            # Not iter(own): that would divide the share again among the workers.
            for rows in _readable(own.iter(size, drop_last_batch=True), self.name):
                yield rows
                read += 1
                if read == most:
                    return
            if read == before:
                raise _too_few(size, shares)


def _readable(rows: Iterator[dict[str, Any]], name: str) -> Iterator[dict[str, Any]]:
    """Reads items. Errors of any file library become an InputError."""
    try:
        yield from rows
    except Exception as error:
        raise InputError(
            f"{name} cannot be read to its end: {type(error).__name__}: {error}; download it again"
        ) from error


def _checked(batch_size: int, size: int) -> int:
    check_positive("batch_size", batch_size)
    check_positive("size", size)
    return size


@functools.lru_cache(maxsize=2)  # a batch spans two epochs at most
def _order(count: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    return numpy_generator(seed, epoch, 0).permutation(count)


def _too_few(size: int, shares: int) -> InputError:
    return InputError(
        f"the share of a worker has fewer images than a batch of {size}: lower batch_size or workers ({shares} "
        "over all processes), or raise accumulation"
    )


def open_images(
    where: str | os.PathLike[str],
    *,
    split: str = "train",
    streaming: bool = False,
    labelled: bool = True,
    crop: Crop = "centre",
    flip: bool = False,
    size: int = 224,
    image_column: str | None = None,
    label_column: str | None = None,
    label_names: Sequence[str] | None = None,
    subset: str | None = None,
    revision: str | None = None,
    images: int | None = None,
    buffer: int = 1000,
) -> ImageDataset | StreamedImageDataset:
    """Opens labelled pictures, in any format that Pillow reads, with Hugging Face `datasets`.

    Args:
        where: A folder with a sub-folder of pictures per class (perhaps inside a folder with the split's name); a
            folder or pattern of parquet files or WebDataset shards (.tar); or the name of a data set on the Hub.
        split: The split, by a usual name (val, Validation, seg_test), or a part of it ("train[:80%]"; in a folder, this
            share of each class); "all" for data without splits. Files of a pattern count as the requested split.
        streaming: Whether to read pictures in order instead of by number, without copying them to the cache.
        labelled: False takes only pictures, anywhere in a folder; all get the label 0.
        crop: For training: "centre" (the largest square in the middle) or "random" (place, area and aspect).
        flip: For training: whether half of the pictures are mirrored.
        size: Side of the images in pixels, if a call does not give it.
        image_column: Name of the column of pictures, if its type or a usual name does not show it.
        label_column: Name of the column of labels, likewise.
        label_names: The names of all classes in order: for labels without names, or to use another split's order.
            Streamed labels need it unless the data set has names.
        subset: Subset of a data set on the Hub that has several.
        revision: Branch, tag or commit of a data set on the Hub.
        images: Number of images in a streamed split, if known; see `StreamedImageDataset.stream`.
        buffer: Number of undecoded pictures that are mixed at a time in a stream.

    Returns:
        `ImageDataset`, or `StreamedImageDataset` if they are streamed.

    Raises:
        MissingExtraError: If `datasets` or Pillow is not installed.
        UnknownNameError: If there is no such split, column or crop; the message lists what exists.
        InputError: If nothing can be read, there is no image, only one class, a class without images that `label_names`
            does not name, or a label that is not a class.

    Example:
        >>> source = open_images("pictures", split="all", size=32)  # pictures/cup/1.jpg, pictures/rocket/2.jpg, ...
        >>> source.class_names
        ('cup', 'rocket')
    """
    check_kind("a data set", where, str | os.PathLike, "give a folder, files, or a name on the Hub, as text or a Path")
    decoder, called = Decoder(crop, flip), f"{os.fspath(where)} ({split})"
    check_positive("size", size)
    check_positive("buffer", buffer)
    if images is not None:
        check_positive("images", images)
    dataset, known, files = find(where, split, streaming, labelled, subset, revision)
    features = dict(dataset.features or {})
    image = image_column_of(features, image_column)
    label = label_column_of(features, label_column) if labelled else ""
    stored_names = getattr(features.get(label), "names", None)
    dataset = undecoded(dataset, [image, label] if label else [image], image)
    if streaming:
        class_names = label_names or stored_names or ()
        if label and not class_names:
            raise InputError(
                f"the labels in column {label!r} have no names, and only reading all data would show the classes: give "
                "label_names, in order"
            )
        columns = Columns(image, label, class_names, stored_names)
        count = known if images is None else images
        return StreamedImageDataset(dataset, columns, decoder, size, count, buffer, called, files)
    if not len(dataset):
        raise InputError(f"{os.fspath(where)!r} has no image in its split {split!r}")
    if label:
        labels, class_names = labels_of(dataset, image, label, stored_names, label_names)
    else:
        labels, class_names = np.zeros(len(dataset), np.int64), ()
    return ImageDataset(dataset.select_columns([image]), labels, class_names, decoder, size, called)
